import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.optimizer import check_optimizer, check_same_optimizer
from bundlerun.workers.state.named import load_state_tensors, stage_names, state_tensors

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class CountingSgd(torch.optim.Optimizer):
    """Keeps a Python number and None in its state, as optimizers of recipes may."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.parameters(), {"lr": 0.1})

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["rate"] = 0.1 / 3**0.5
                state["unused"] = None
                with torch.no_grad():
                    parameter.sub_(parameter.grad, alpha=state["rate"] / state["count"])


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    "amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True, foreach=True),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
    "numbers": CountingSgd,
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_goes_on_bit_equal_after_a_load(name: str, layout: torch.memory_format) -> None:
    straight = make_model().to(memory_format=layout)
    optimizer = OPTIMIZERS[name](straight)
    train(straight, optimizer, range(3))
    state = copied(state_tensors(straight, optimizer))
    train(straight, optimizer, range(3, 6))

    resumed = make_model().to(memory_format=layout)
    fresh = OPTIMIZERS[name](resumed)
    load_state_tensors(resumed, fresh, state)
    train(resumed, fresh, range(3, 6))

    expected = state_tensors(straight, optimizer)
    found = state_tensors(resumed, fresh)
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_names_are_the_models_own() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["momentum"](model)
    train(model, optimizer, range(1))

    names = set(state_tensors(model, optimizer))

    assert {n for n in names if n.startswith("model.")} == {
        f"model.{n}" for n in model.state_dict()
    }
    assert "model.1.num_batches_tracked" in names
    assert "optimizer.0.weight.momentum_buffer" in names


def test_python_numbers_come_back_as_python_numbers() -> None:
    model = make_model()
    optimizer = CountingSgd(model)
    train(model, optimizer, range(2))

    fresh = CountingSgd(model)
    load_state_tensors(model, fresh, copied(state_tensors(model, optimizer)))

    state = fresh.state[next(model.parameters())]
    assert (state["count"], state["rate"]) == (2, 0.1 / 3**0.5)
    assert type(state["count"]) is int


def test_float32_state_of_bfloat16_parameters_keeps_its_dtype() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wide = torch.randn(2, 3)
    optimizer.state[model.weight]["momentum_buffer"] = wide

    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    load_state_tensors(model, fresh, state_tensors(model, optimizer))

    assert torch.equal(fresh.state[model.weight]["momentum_buffer"], wide)


def test_loaded_state_does_not_share_memory_with_what_was_given() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["momentum"](model)
    train(model, optimizer, range(2))
    state = copied(state_tensors(model, optimizer))
    before = copied(state)

    load_state_tensors(model, optimizer, state)
    train(model, optimizer, range(2, 4))

    assert all(torch.equal(state[name], before[name]) for name in state)


def test_old_optimizer_state_is_gone_after_a_load() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["momentum"](model)
    untrained = copied(state_tensors(model, optimizer))
    train(model, optimizer, range(2))

    load_state_tensors(model, optimizer, untrained)

    assert not optimizer.state


def test_a_stage_takes_only_its_own_names() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["momentum"](model)
    train(model, optimizer, range(1))
    state = state_tensors(model, optimizer)
    rear = nn.Module()
    rear.add_module("3", nn.Linear(288, 4))

    names = stage_names(rear, state)

    assert set(names) == {
        "model.3.weight",
        "model.3.bias",
        "optimizer.3.weight.momentum_buffer",
        "optimizer.3.bias.momentum_buffer",
    }
    load_state_tensors(rear, torch.optim.SGD(rear.parameters()), {n: state[n] for n in names})
    assert torch.equal(rear.get_parameter("3.weight"), model.get_parameter("3.weight"))


def test_tied_parameters_accept_state_under_either_name() -> None:
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1, momentum=0.9)
    state = state_tensors(tied, None)
    buffer = torch.randn(2, 2)

    for alias in ("a", "b"):
        given = state | {f"optimizer.{alias}.weight.momentum_buffer": buffer}
        assert set(stage_names(tied, given)) == set(given)
        load_state_tensors(tied, optimizer, given)
        assert torch.equal(optimizer.state[tied["a"].weight]["momentum_buffer"], buffer)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "foreign state"])
def test_state_that_does_not_fit_is_refused_and_changes_nothing(change: str) -> None:
    model = make_model()
    state = copied(state_tensors(model, None))
    state["model.3.bias"] += 1
    if change == "missing":
        del state["model.0.weight"]
    elif change == "extra":
        state["model.0.wieght"] = torch.zeros(1)
    elif change == "shape":
        state["model.3.weight"] = torch.zeros(7, 288)
    else:
        state["optimizer.9.weight.momentum_buffer"] = torch.zeros(1)
    before = copy.deepcopy(model.state_dict())

    says = {"shape": "7x288.*4x288", "foreign state": "9.weight"}.get(change, "0.w")
    with pytest.raises(CheckpointError, match=says):
        load_state_tensors(model, OPTIMIZERS["sgd"](model), state)

    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_stage_that_is_not_in_the_checkpoint_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"has no 'model.0.bias'.*--model"):
        stage_names(make_model(), ["model.0.weight"])


def test_what_cannot_be_kept_is_named_with_its_place() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["sgd"](model)
    state = optimizer.state[next(model.parameters())]
    state["history"] = [1, {"file": object()}]
    with pytest.raises(
        CheckpointError, match=r"'history' of SGD for '0.weight': \[1\]\['file'\] is"
    ):
        state_tensors(model, optimizer)
    del state["history"]
    optimizer.state["everywhere"] = {"step": 3}  # type: ignore[index] # torch types tensors only
    with pytest.raises(CheckpointError, match=r"1 keys that are no parameters.*'everywhere'"):
        state_tensors(model, optimizer)


def test_nested_state_comes_back_as_it_was() -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: dict[Any, Any] = {
        "factors": [torch.randn(2, 2), [torch.ones(1, dtype=torch.bfloat16)], ()],
        "none": None,
        "flag": True,
        "big": 1 << 70,
        "deep": {"a": (1, 2.5, float("-inf")), "b": torch.tensor(3), 4: "text"},
        "numpy": [np.float64(0.1)],
        "complex": torch.randn(2, dtype=torch.complex64),
        "odd.key": torch.randn(3),
        7: torch.randn(1),
    }
    optimizer.state[model.weight] = copy.deepcopy(kept)

    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    names = stage_names(model, state_tensors(model, optimizer))
    state = copied(state_tensors(model, optimizer))
    load_state_tensors(model, fresh, {name: state[name] for name in names})

    found = fresh.state[model.weight]
    assert found.keys() == kept.keys()
    assert found["deep"].pop(4) == kept["deep"].pop(4) == "text"
    torch.testing.assert_close(dict(found), kept, rtol=0, atol=0)
    assert type(found["deep"]["a"]) is tuple
    assert found["none"] is None
    assert found["factors"][0].data_ptr() != state["optimizer.weight.factors#0"].data_ptr()


class Warming(torch.optim.SGD):
    """Keeps numbers in its groups, as Prodigy and schedule-free optimizers do."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["sum"] = group.get("sum", torch.zeros(1)) + group["k"]
            for parameter in group["params"]:
                parameter.grad.mul_(1 / float(group["sum"]))
        super().step()


def grouped(model: nn.Module, make: type[torch.optim.SGD] = Warming) -> torch.optim.SGD:
    small = [p for p in model.parameters() if p.ndim == 1]
    large = [p for p in model.parameters() if p.ndim > 1]
    return make([{"params": large}, {"params": small, "lr": 0.3, "momentum": 0.5}], lr=0.1)


def with_scheduler(model: nn.Module) -> torch.optim.SGD:
    """A scheduler of torch's, which a hook of the optimizer steps."""
    optimizer = grouped(model, torch.optim.SGD)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 4),
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
        ],
        milestones=[2],
    )
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def with_tensor_lr(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))


@pytest.mark.parametrize("make", [grouped, with_scheduler, with_tensor_lr])
def test_numbers_of_groups_go_on_where_they_were(
    make: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    straight = make_model()
    optimizer = make(straight)
    groups = ParamGroups(optimizer)

    def run(
        model: nn.Module, which: torch.optim.Optimizer, of: ParamGroups, steps: range
    ) -> list[float]:
        used = []
        for step in steps:
            of.set_lr(1 / (step + 1))
            used.append(of.lr)
            train(model, which, range(step, step + 1))
        return used

    run(straight, optimizer, groups, range(3))
    state = copied(state_tensors(straight, optimizer, groups))
    used = run(straight, optimizer, groups, range(3, 7))

    resumed = make_model()
    fresh = make(resumed)
    fresh_groups = ParamGroups(fresh)
    load_state_tensors(resumed, fresh, state, fresh_groups)
    assert run(resumed, fresh, fresh_groups, range(3, 7)) == used
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_groups_of_two_stages_meet_in_one(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    state = copied(state_tensors(model, None))
    for number, name in enumerate("ab"):
        stage = nn.ModuleDict({name: model[name]})
        optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
        groups = ParamGroups(optimizer)
        optimizer.param_groups[0].update(d=0.5 + number, k=4)
        state |= copied(state_tensors(stage, optimizer, groups))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    load_state_tensors(model, optimizer, state, ParamGroups(optimizer))
    group = optimizer.param_groups[0]
    assert (group["d"], group["k"], group["lr"]) == (0.5, 4, 0.1)
    assert [r.message for r in caplog.records] == [
        "the optimizer's 'd' differs between parameters that are in one group now: that of the "
        "first of them holds"
    ]


def test_options_that_the_optimizer_did_not_change_are_those_of_the_new_run() -> None:
    model = make_model()
    optimizer = grouped(model)
    groups = ParamGroups(optimizer)
    train(model, optimizer, range(2))
    state = copied(state_tensors(model, optimizer, groups))
    fresh = Warming(model.parameters(), lr=0.7, weight_decay=0.25)
    load_state_tensors(model, fresh, state, ParamGroups(fresh))
    group = fresh.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["k"]) == (0.7, 0.25, 2)


def test_another_optimizer_is_refused_with_both_names() -> None:
    optimizer = OPTIMIZERS["adamw"](make_model())
    check_same_optimizer("AdamW", optimizer)
    check_same_optimizer("", optimizer)
    with pytest.raises(ConfigError, match="of the optimizer SGD, and this run has AdamW; go on"):
        check_same_optimizer("SGD", optimizer)


def test_what_is_frozen_or_trained_anew_begins_anew_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model()
    head = [p for n, p in model.named_parameters() if n.startswith("3.")]
    body = [p for n, p in model.named_parameters() if not n.startswith("3.")]
    optimizer = torch.optim.SGD([*head, body[0]], lr=0.1, momentum=0.9)
    train(model, optimizer, range(2))
    state = copied(state_tensors(model, optimizer))
    other = torch.optim.SGD([*head, body[1]], lr=0.1, momentum=0.9)
    load_state_tensors(model, other, state)
    assert set(other.state) == set(head)
    assert [record.message for record in caplog.records] == [
        "SGD does not train 1 parameters any more, such as '0.weight': what it kept for them is "
        "left",
        "the state to resume from has nothing that SGD keeps for 1 of its parameters, such as "
        "'0.bias': they begin anew",
    ]


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: object) -> None:  # type: ignore[override]
        """Runs the model again."""


class Beside(torch.optim.SGD):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slow": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS runs the model several times"),
        (lambda p: NeedsClosure(p), "NeedsClosure runs the model several times"),
        (lambda p: torch.optim.SparseAdam(p), "SparseAdam takes sparse gradients only"),
        (lambda p: Beside(p), "Beside keeps 'slow' beside its state"),
        (lambda p: [torch.optim.SGD(p)], "gives list, not a torch.optim.Optimizer"),
        (lambda p: torch.optim.SGD([*p, nn.Parameter(torch.zeros(3))]), r"1 parameters.*\[3\]"),
    ],
)
def test_an_optimizer_that_no_bundle_can_use_is_refused(
    make: Callable[[list[Tensor]], object], message: str
) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=message):
        check_optimizer(make(list(model.parameters())), model)


def test_our_course_of_the_learning_rate_gives_way_to_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model()
    optimizer = OPTIMIZERS["sgd"](model)
    groups = ParamGroups(optimizer, speaks=True)
    groups.set_lr(0.5)
    assert groups.lr == optimizer.param_groups[0]["lr"] == 0.05
    groups.set_lr(0.4)
    optimizer.param_groups[0]["lr"] = 0.02
    for _ in range(2):
        groups.set_lr(0.3)
        assert groups.lr == optimizer.param_groups[0]["lr"] == 0.02
    assert len(caplog.records) == 1
    assert "sets its learning rate itself" in caplog.text
    assert with_own_lr(optimizer, groups) == 0.02


def with_own_lr(optimizer: torch.optim.Optimizer, groups: ParamGroups) -> float:
    (record,) = {id(r): r for r in groups.records().values()}.values()
    return float(record["group"]["lr"])


def test_an_optimizer_without_a_learning_rate_finds_its_own() -> None:
    optimizer = OPTIMIZERS["sgd"](make_model())
    optimizer.param_groups[0]["lr"] = None
    groups = ParamGroups(optimizer)
    groups.set_lr(0.5)
    assert optimizer.param_groups[0]["lr"] is None
    assert math.isnan(groups.lr)


def test_only_what_has_changed_in_a_group_is_kept() -> None:
    optimizer = OPTIMIZERS["adamw"](make_model())
    group = optimizer.param_groups[0]
    group["trail"], group["hook"] = [1.0], print
    groups = ParamGroups(optimizer)
    groups.set_lr(0.5)
    assert groups.records() == {}
    group["trail"].append(2.0)
    group["betas"] = (0.9, 0.99)
    kept = groups.records()[group["params"][0]]["group"]
    assert kept == {"trail": [1.0, 2.0], "betas": (0.9, 0.99)}


def test_a_scheduler_of_torchs_holds_from_the_first_step() -> None:
    optimizer = with_scheduler(make_model())
    groups = ParamGroups(optimizer)
    groups.set_lr(0.5)
    assert groups.lr == pytest.approx(0.1 / 4)


def test_a_tensor_as_learning_rate_stays_that_tensor() -> None:
    lr = torch.tensor(0.01)
    optimizer = torch.optim.AdamW(make_model().parameters(), lr=lr)
    groups = ParamGroups(optimizer)
    for factor in (1.0, 0.5, 0.25):
        groups.set_lr(factor)
    assert optimizer.param_groups[0]["lr"] is lr
    assert groups.lr == lr.item() == pytest.approx(0.0025)
