"""Gives modules back what they had, after a run of their code that is not to count."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

_HOLDERS = (dict, list, set, deque)


@contextmanager
def members_kept(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Puts back the members of all modules under `roots`: which object each name stands for.

    Members are attributes, parameters, buffers, submodules, hooks, modes, and what is in a list, a
    dict, a set or a deque among the attributes. Of tensors this is not the numbers in them.
    """
    modules = modules_under(roots)
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    values = [value for _, kept in attributes for value in kept.values()]
    holders = [(v, v.copy() if v else ()) for v in values if isinstance(v, _HOLDERS)]
    try:
        yield
    finally:
        for now, before in [*attributes, *holders]:
            _refill(now, before)


def modules_under(roots: Sequence[nn.Module]) -> list[nn.Module]:
    """All modules whose members a forward of `roots` may change, each once, in order."""
    found: dict[nn.Module, None] = {}
    for root in roots:
        for module in root.modules():
            found[module] = None
            # A stage that replays runs the forward of one that is no submodule of it.
            if isinstance(replica := vars(module).get("replica"), nn.Module):
                found[replica] = None
    return list(found)


def _refill(now: Any, before: Any) -> None:  # noqa: ANN401 - any holder
    if not now and not before:
        return  # most hooks
    # The same object, refilled: others may refer to it.
    now.clear()
    if isinstance(now, (dict, set)):
        now.update(before)
    else:
        now.extend(before)
