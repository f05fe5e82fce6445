import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from launcher.errors import CheckpointError
from workers.state import load_state_tensors, stage_names, state_tensors

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


def test_state_that_is_neither_tensor_nor_number_is_refused() -> None:
    model = make_model()
    optimizer = OPTIMIZERS["sgd"](model)
    optimizer.state[next(model.parameters())]["history"] = [1, 2]

    with pytest.raises(CheckpointError, match=r"'history' of SGD for '0\.weight': list"):
        state_tensors(model, optimizer)
