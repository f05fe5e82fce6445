"""Where a stage finds the tensors of a module, those of other stages and in holders included."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

HIDDEN = "_of_other_stages"
"""The member of a module in which a stage keeps what stands in for other stages' tensors."""


def state_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of one module, and those of other stages that stand in for it."""
    hidden = vars(module).get(HIDDEN, {})
    holders = (module._parameters, module._buffers, hidden)
    return [t for holder in holders for t in dict.values(holder) if t is not None]


_HOLDERS = (Mapping, partial, list, tuple, set, frozenset, deque)


def held(value: Any) -> Iterator[Any]:  # noqa: ANN401 - any value
    """What is in nested dicts, lists and the like; any other value by itself.

    Each holder is looked into once: it may hold itself.
    """
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if not isinstance(one, _HOLDERS):
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            left.extend(_parts(one))


def _parts(holder: Any) -> Iterable[Any]:  # noqa: ANN401 - one of those above
    if isinstance(holder, partial):
        return (holder.func, *holder.args, *holder.keywords.values())
    found: Iterable[Any] = holder.values() if isinstance(holder, Mapping) else holder
    return found
