"""A step that is left behind: each read waits for its bucket, and the rest comes in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.ranks.fault import PeerGoneError
from bundlerun.workers.overlap.behind import Behind


class Buckets:
    """Sums that come one bucket at a time."""

    def __init__(self, *buckets: Sequence[nn.Parameter]) -> None:
        self.left = list(buckets)
        self.released: list[nn.Parameter] = []

    @property
    def is_under_way(self) -> bool:
        return bool(self.left)

    def take_next(self) -> Sequence[nn.Parameter]:
        return self.left.pop(0)

    def release(self, parameters: Sequence[nn.Parameter]) -> None:
        self.released += parameters


class Model(nn.Module):
    """Two layers, and one that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        self.unused = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def left(model: Model, buckets: Buckets, num_chunks: int = 1) -> tuple[Behind, list[str]]:
    """A step left behind, and what happens."""
    behind, log = Behind(buckets, num_chunks), []
    names = {id(p): name for name, p in model.named_parameters()}

    def change(parameters: Sequence[nn.Parameter]) -> None:
        assert not torch.is_grad_enabled()
        log.extend(f"change {names[id(p)]}" for p in parameters)

    for number, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, n=number: log.append(f"layer {n}"))
    behind.leave(list(model.parameters()), change)
    behind.when_settled(lambda: log.append("settled"))
    return behind, log


FIRST, SECOND, UNUSED = "layers.0.weight", "layers.1.weight", "unused.weight"


def test_a_layer_waits_for_its_own_parameters_and_the_end_for_all() -> None:
    model = Model()
    first, second, unused = model.parameters()
    buckets = Buckets([first], [], [second], [unused])
    behind, log = left(model, buckets)
    (forward,) = behind.around([model])
    forward(torch.ones(1, 3))
    order = [f"change {FIRST}", "layer 0", f"change {SECOND}", "layer 1", f"change {UNUSED}"]
    assert log == [*order, "settled"]
    assert buckets.released == [first, second, unused]
    assert not behind.is_open
    forward(torch.ones(1, 3))
    assert log[-2:] == ["layer 0", "layer 1"]


def test_sums_that_come_before_what_is_waited_for_are_taken_on_the_way() -> None:
    model = Model()
    first, second, unused = model.parameters()
    behind, log = left(model, Buckets([unused], [second], [first]))
    behind.around([model])[0](torch.ones(1, 3))
    changes = [f"change {name}" for name in (UNUSED, SECOND, FIRST)]
    assert log == [*changes, "layer 0", "layer 1", "settled"]


def test_of_several_chunks_the_last_one_to_run_settles() -> None:
    model = Model()
    first, second, unused = model.parameters()
    behind, log = left(model, Buckets([first], [second], [unused]), num_chunks=2)
    chunks = behind.around(list(model.layers))
    chunks[0](torch.ones(1, 3))
    chunks[0](torch.ones(1, 3))
    assert log == [f"change {FIRST}", "layer 0", "layer 0"]
    assert behind.is_open
    chunks[1](torch.ones(1, 3))
    assert log[-1] == "settled"


def test_whoever_asks_settles_and_is_told_at_once_where_nothing_is_left() -> None:
    model, told = Model(), []
    behind, log = left(model, Buckets(list(model.parameters())))
    behind.settle()
    assert log[-1] == "settled"
    behind.settle()
    behind.when_settled(lambda: told.append(1))
    assert told


def test_a_peer_that_is_gone_ends_the_forward_that_waits_for_it() -> None:
    class Gone(Buckets):
        def take_next(self) -> Any:
            raise PeerGoneError("gone")

    model = Model()
    behind, _ = left(model, Gone([]))
    with pytest.raises(PeerGoneError):
        behind.around([model])[0](torch.ones(1, 3))
    assert not torch._C._len_torch_function_stack()
