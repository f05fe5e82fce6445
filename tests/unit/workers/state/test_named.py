import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bundlerun.launcher.errors import CheckpointError
from bundlerun.workers.state.named import load_state_tensors, stage_names, state_tensors
from tests.unit.workers.state.stage_tools import OPTIMIZERS, CountingSgd, copied, make_model, train


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
