"""Two dry runs of a model with other random numbers: what they do not have alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bundlerun.splits.replay.calls import name_of
from bundlerun.splits.replay.record import Call, Record, Undecided


def unlike(one: Record, two: Record) -> str:
    """The first thing that a forward did in one of two runs only, in words; nothing: none."""
    for a, b in zip(one.calls, two.calls, strict=False):
        if a.func != b.func:
            return f"calls {name_of(a.func)!r} once and {name_of(b.func)!r} the other time"
        if _shapes(a) != _shapes(b):
            return f"makes tensors of other shapes each time in {name_of(a.func)!r}"
    if len(one.calls) != len(two.calls):
        return f"makes {len(one.calls)} calls once and {len(two.calls)} the other time"
    # Behind a failure nothing is known but what is still held.
    is_whole = not one.failure and not two.failure
    if one.state_uses != two.state_uses or (is_whole and one.last_use != two.last_use):
        return "gives other tensors to the same calls each time"
    return ""


def undecided(one: Record, two: Record) -> Undecided:
    """What is a plain value, and another one in each of two runs that are alike."""
    pairs = list(zip(one.calls, two.calls, strict=True))
    return Undecided(
        reads=frozenset(n for n in one.read if not _is_equal(*(c.result for c in pairs[n]))),
        uses=frozenset(n for n, (a, b) in enumerate(pairs) if not _is_equal(a.plain, b.plain)),
    )


def _shapes(call: Call) -> Sequence[object]:
    return [leaf.shape for leaf in tree_leaves(call.result) if isinstance(leaf, Tensor)]


def _is_equal(a: object, b: object) -> bool:
    # Not a number is what it was.
    return a == b or (a != a and b != b)
