"""What a dry run has found out about a forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Key = tuple[int, int]
"""A tensor: the number of the call that makes it, -1 for an input, and its place there."""


class Unforeseen(BaseException):
    """A forward did what cannot be foreseen without numbers; the text says what.

    No Exception: the user's code is not to handle it.
    """


class Reached(BaseException):
    """The forward has come as far as it was to come."""


def agreed(mappings: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """What is in several, without what is not the same in all that have it."""
    found: dict[str, object] = {}
    differing: set[str] = set()
    for each in mappings:
        for key, value in each.items():
            if found.setdefault(key, value) != value:
                differing.add(key)
    return {key: value for key, value in found.items() if key not in differing}


@dataclass(slots=True)
class Call:
    """One call of a function."""

    func: Callable[..., Any]
    result: Any = None
    """As the user's code got it."""
    operations: int = 0
    plain: Sequence[object] = ()
    """Its arguments that are no tensors."""
    region: int = 0
    """The activation checkpoint that it is done in, by number; 0: in none."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """Plain values that random numbers decide, by the number of the call."""

    reads: frozenset[int] = frozenset()
    """Calls that give one."""
    uses: frozenset[int] = frozenset()
    """Calls that are given one."""

    def spans(self, boundary: int) -> bool:
        """Whether one is given before a boundary, and one used behind it."""
        return any(r < boundary for r in self.reads) and any(u >= boundary for u in self.uses)


@dataclass(slots=True)
class Record:
    """What a forward has done."""

    calls: list[Call] = field(default_factory=list)
    entries: dict[str, int] = field(default_factory=dict)
    """Calls before a module was entered first, by its name, in the order of the entries."""
    inside: set[str] = field(default_factory=set)
    """Modules that were entered first inside a call."""
    recomputed: set[str] = field(default_factory=set)
    """Modules that were entered first in an activation checkpoint, behind other calls in it."""
    last_use: dict[Key, int] = field(default_factory=dict)
    looks: dict[Key, Tensor] = field(default_factory=dict)
    """A tensor that looks like what has the name."""
    state_uses: dict[int, list[int]] = field(default_factory=dict)
    """Numbers of the calls that use a parameter or buffer, by its identity."""
    state_writes: set[int] = field(default_factory=set)
    """Parameters and buffers that a call writes to, by identity."""
    memory: dict[Key, int] = field(default_factory=dict)
    """Tensors with the same number share memory."""
    writes: list[tuple[int, int]] = field(default_factory=list)
    """Number of the call, and the memory that it writes to."""
    rewritten: set[Key] = field(default_factory=set)
    """Tensors of no input that a later call writes to."""
    read: set[int] = field(default_factory=set)
    """Numbers of the calls that make a plain value of numbers that are known."""
    said: dict[str, object] = field(default_factory=dict)
    """What lines of the user's code have read of numbers; of one that did not always read the same,
    nothing."""
    undecided: Undecided = field(default_factory=Undecided)
    failure: str = ""
    """Why the forward has not come to its end; nothing where it has."""

    def crossing(self, boundary: int) -> list[Key]:
        """The tensors that calls before `boundary` make and later ones need, in order."""
        return sorted(k for k, last in self.last_use.items() if k[0] < boundary <= last)

    def shared_writes(self, boundary: int) -> list[Key]:
        """Of those that cross, some that share memory which is written to behind the boundary."""
        places = Counter(self.memory[k] for k in self.crossing(boundary) if k in self.memory)
        written = {memory for number, memory in self.writes if number >= boundary}
        shared = {memory for memory, count in places.items() if count > 1} & written
        return [k for k in self.crossing(boundary) if self.memory.get(k) in shared]
