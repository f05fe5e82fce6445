"""Exact: where to cut so that the costliest stage costs as little as it can.

A stage's cost is the largest of a few lines, each a difference of values at its two ends:

    cost(start, end) = max over lines of  at_end[end] - at_start[start]

It grows with the end and falls with the start. So for each end there is a start up to which the
stage itself decides, and from which on the ones before do; that is looked up, not tried.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

Line = tuple[Sequence[float], Sequence[float]]
"""(at_end, at_start), by the number of the piece that begins there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way in which a stage could do its part.

    Args:
        lines: of its cost, one at least.
        first: per end the first start that fits into memory; empty: all do.
    """

    lines: Sequence[Line]
    first: Sequence[int] = ()

    def cost(self, start: int, end: int) -> float:
        """Of the pieces from `start` to before `end`; inf: they do not fit."""
        if self.first and start < self.first[end]:
            return inf
        return max(at_end[end] - at_start[start] for at_end, at_start in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage may do.

    Args:
        ways: the cheapest that fits is taken.
        entry: per start, a cost of the cut before it, such as that of its link; empty: none.
    """

    ways: Sequence[Way]
    entry: Sequence[float] = field(default=())

    def cost(self, start: int, end: int) -> float:
        """Of the cheapest way, its entry too."""
        own = min(way.cost(start, end) for way in self.ways)
        return max(own, self.entry[start]) if self.entry else own


def partition(stages: Sequence[Stage], num_pieces: int) -> tuple[float, tuple[int, ...]]:
    """The cuts of which the costliest stage costs the least.

    Args:
        stages: in order; each gets one piece at least.
        num_pieces: of the model, as many as stages at least.

    Returns:
        That cost, and the number of the first piece of each stage but the first; inf and nothing
        where no cuts fit.
    """
    count = len(stages)
    best = [stages[0].cost(0, end) if end else inf for end in range(num_pieces + 1)]
    starts: list[list[int]] = []
    for number, stage in enumerate(stages[1:], start=1):
        is_last = number == count - 1
        best, found = _next_best(best, stage, number, num_pieces, is_last=is_last)
        starts.append(found)
    if best[num_pieces] == inf:
        return inf, ()
    cuts: list[int] = []
    end = num_pieces
    # Back from the end, along the starts that were best.
    for found in reversed(starts):
        end = found[end]
        cuts.append(end)
    return best[num_pieces], tuple(reversed(cuts))


def _next_best(
    before: Sequence[float], stage: Stage, number: int, num_pieces: int, *, is_last: bool
) -> tuple[list[float], list[int]]:
    """With one stage more: the least cost up to each end, and where that stage starts then."""
    best, found = [inf] * (num_pieces + 1), [0] * (num_pieces + 1)
    entry = stage.entry
    # Starts that no later one beats in what comes before them: their costs grow along the list.
    places: list[int] = []
    costs: list[float] = []
    for end in range(number + 1, num_pieces + 1):
        start = end - 1
        cost = max(before[start], entry[start]) if entry else before[start]
        while costs and costs[-1] >= cost:
            costs.pop()
            places.pop()
        if cost < inf:
            costs.append(cost)
            places.append(start)
        if is_last and end < num_pieces:
            continue
        for way in stage.ways:
            value, where = _cheapest(way, end, places, costs)
            if value < best[end]:
                best[end], found[end] = value, where
    return best, found


def _cheapest(
    way: Way, end: int, places: Sequence[int], costs: Sequence[float]
) -> tuple[float, int]:
    """The start for a stage with this end, and the largest cost then."""
    low = bisect_left(places, way.first[end]) if way.first else 0
    high, top = len(places), len(places)
    if low == high:
        return inf, 0
    lines = [(at_end[end], at_start) for at_end, at_start in way.lines]
    first = low
    # The first start at which what is before costs as much as the stage itself.
    while low < high:
        middle = (low + high) // 2
        place = places[middle]
        if costs[middle] >= max(value - at_start[place] for value, at_start in lines):
            high = middle
        else:
            low = middle + 1
    value, where = inf, 0
    if low < top:
        value, where = costs[low], places[low]
    if low > first:
        place = places[low - 1]
        own = max(at - at_start[place] for at, at_start in lines)
        if own < value:
            value, where = own, place
    return value, where
