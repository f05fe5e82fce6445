"""What is kept of a user's objects: their names, what is copied when, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.own.objects import Objects, Packing, named, unpacked


def net() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_names_say_what_an_object_is_and_do_not_depend_on_what_is_around_a_model() -> None:
    model, other = net(), net()
    wrapped: Any = torch.compile(model)
    scheduler = torch.optim.lr_scheduler.StepLR(SGD(model.parameters(), 0.1), 1)
    first, second = SGD(model.parameters(), 0.1), SGD(other.parameters(), 0.1)
    found = named([wrapped, first, scheduler, other, second])
    assert list(found) == ["model", "optimizer", "steplr", "model2", "optimizer2"]
    assert found["model"] is model


class FullyShardedDataParallel(nn.Module):
    """Has the name of torch's."""


def test_what_each_rank_has_a_part_of_is_refused() -> None:
    with pytest.raises(ConfigError, match="gives each rank a part; use DistributedDataParallel"):
        named([FullyShardedDataParallel()])


@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_forward_writes_is_copied_and_what_a_step_changes_is_lent(is_first: bool) -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    objects = Objects([model, optimizer])
    for _ in range(1 if is_first else 2):
        _step(model, optimizer, before=objects.look)
        before = objects.state()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    model(torch.arange(5))
    assert all(torch.equal(before[name], kept[name]) for name in before)
    assert objects.look() == []
    lent = {name for name, tensor in before.items() if _is_own(tensor, model, optimizer)}
    # Before the first step of a run nobody knows what a forward writes.
    assert lent == (
        set()
        if is_first
        else {
            *(f"model.{name}" for name in ("1.weight", "1.bias", "2.weight", "2.bias")),
            *(f"optimizer.{number}.momentum_buffer" for number in range(5)),
        }
    )


def _step(model: nn.Module, optimizer: SGD, before: Callable[[], object]) -> None:
    model(torch.arange(5)).sum().backward()
    before()
    optimizer.step()


def _is_own(tensor: torch.Tensor, model: nn.Module, optimizer: SGD) -> bool:
    moments = [v for state in optimizer.state.values() for v in state.values()]
    places = {t.data_ptr() for t in [*model.state_dict().values(), *moments]}
    return tensor.data_ptr() in places


def test_what_changes_later_outside_of_a_step_is_told_once() -> None:
    model = nn.Linear(2, 2)
    objects = Objects([model, SGD(model.parameters(), lr=0.1)])
    objects.state()
    assert objects.look() == []
    objects.state()
    with torch.no_grad():
        model.bias.zero_()
    assert objects.look() == ["model.bias"]
    objects.state()
    with torch.no_grad():
        model.bias.zero_()
    assert objects.look() == []


def test_an_optimizer_gets_its_own_dtypes_and_tensors_of_its_own_back() -> None:
    model = nn.Linear(3, 3).bfloat16()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.rand(3, 3)  # in float32
    objects = Objects([model, optimizer])
    kept = {name: tensor.clone() for name, tensor in objects.state().items()}
    before = optimizer.state[model.weight]["momentum_buffer"].clone()
    optimizer.state[model.weight]["momentum_buffer"].zero_()
    objects.load(kept)
    for tensor in kept.values():
        tensor.zero_()  # the memory of a snapshot, which is written again
    found = optimizer.state[model.weight]["momentum_buffer"]
    assert found.dtype == torch.float32
    assert torch.equal(found, before)
    assert model.weight.abs().sum() > 0


def test_forms_keep_their_room_while_texts_in_them_grow() -> None:
    packing = Packing()
    sizes = [len(packing.packed("x", {"lr": [0.1] * n})["x#form"]) for n in (1, 2, 20, 3)]
    assert len(set(sizes)) == 1
    longer = packing.packed("x", {"lr": [0.1] * 400})
    assert len(longer["x#form"]) > sizes[0]
    assert unpacked("x", longer) == {"lr": [0.1] * 400}
    assert len(packing.packed("x", {})["x#form"]) == len(longer["x#form"])
