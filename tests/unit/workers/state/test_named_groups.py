import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.optimizer import check_optimizer, check_same_optimizer
from bundlerun.workers.state.named import load_state_tensors, state_tensors
from tests.unit.workers.state.stage_tools import (
    OPTIMIZERS,
    copied,
    make_model,
    train,
)


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


def with_two(model: nn.Module) -> torch.optim.SGD:
    optimizer = with_scheduler(model)
    ahead = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    optimizer.register_step_post_hook(lambda *_: ahead.step())
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
    with pytest.raises(ConfigError, match="of the optimizer SGD, and this run has AdamW; resume"):
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
        "'0.bias': they begin from nothing",
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
        (lambda p: Beside(p), "Beside keeps 'slow' next to its state"),
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


@pytest.mark.parametrize(("before", "after"), [(with_two, with_scheduler), (grouped, with_two)])
def test_schedulers_that_were_not_there_before_begin_anew_and_that_is_said(
    before: Callable[[nn.Module], torch.optim.Optimizer],
    after: Callable[[nn.Module], torch.optim.Optimizer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, same = make_model(), make_model()
    optimizer = before(model)
    groups = ParamGroups(optimizer)
    train(model, optimizer, range(3))
    kept = copied(state_tensors(model, optimizer, groups))
    fresh = after(same)
    again = ParamGroups(fresh)
    steps = [scheduler.last_epoch for scheduler in again._schedulers]
    load_state_tensors(same, fresh, kept, again)
    assert [scheduler.last_epoch for scheduler in again._schedulers] == steps
    assert "schedulers of its learning rate, and the state to resume from has" in caplog.text


def test_a_tensor_as_learning_rate_stays_that_tensor() -> None:
    lr = torch.tensor(0.01)
    optimizer = torch.optim.AdamW(make_model().parameters(), lr=lr)
    groups = ParamGroups(optimizer)
    for factor in (1.0, 0.5, 0.25):
        groups.set_lr(factor)
    assert optimizer.param_groups[0]["lr"] is lr
    assert groups.lr == lr.item() == pytest.approx(0.0025)
