"""What is remembered of calls is what a dry run finds."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bundlerun.splits.replay import dry_run
from bundlerun.splits.replay.look import look
from bundlerun.splits.replay.memo import Memo, key_of
from bundlerun.splits.replay.record import Record

CPU = torch.device("cpu")


def looks_of(record: Record) -> list[Any]:
    """Function and results of each call; a tensor by its look, and by which of all it is."""
    places: dict[int, int] = {}

    def one(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        place = places.setdefault(id(leaf), len(places))
        return (*leaf.shape, leaf.stride(), leaf.dtype, leaf.requires_grad, place)

    return [(call.func, [one(leaf) for leaf in tree_leaves(call.result)]) for call in record.calls]


def test_results_are_those_of_a_dry_run_and_most_are_not_thought_again(monkeypatch: Any) -> None:
    # In-place operations, views, sizes that are read, several results.
    model: nn.Module = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    model.add_module("end", nn.Linear(3, 3))
    forward = model.forward
    model.forward = lambda x: model.end(forward(x) + x.shape[2])  # type: ignore[operator]
    thought: list[object] = []
    own = dry_run.DryRun._thought

    def counted(self: Any, func: Any, args: Any, kwargs: Any) -> Any:
        thought.append(func)
        return own(self, func, args, kwargs)

    monkeypatch.setattr(dry_run.DryRun, "_thought", counted)
    memo = Memo()
    for side, is_new in ((64, True), (64, False), (96, True), (64, False)):
        x = torch.empty(2, 3, side, side, device="meta")
        wanted = looks_of(look(model, (x,), CPU, until="end"))
        thought.clear()
        assert looks_of(look(model, (x,), CPU, until="end", memo=memo)) == wanted
        assert len(wanted) > 150
        assert (len(thought) > 20) == is_new


def test_calls_that_differ_in_more_than_numbers_are_not_alike() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)

    def key(*args: object, **kwargs: object) -> object:
        return key_of(torch.add, args, kwargs, lambda t: True, CPU)

    assert key(a, b) == key(b, a)
    assert key(a, a) != key(a, b)
    assert key(a, 1) != key(a, 1.0) != key(a, True)
    assert key(a, b) != key(a, torch.zeros(3, 2).t())
    assert key(a, b) != key(a, b.requires_grad_())
    with torch.no_grad():
        without = key(a, a)
    assert without != key(a, a)
    with torch.autocast("cpu", torch.bfloat16):
        half = key(a, a)
    assert half != key(a, a)
    assert key_of(torch.add, (a, b), {}, lambda t: t is a, CPU) is None
    assert key_of(torch.rand_like, (a,), {}, lambda t: True, CPU) is None
    assert key_of(Tensor.item, (a,), {}, lambda t: True, CPU) is None
