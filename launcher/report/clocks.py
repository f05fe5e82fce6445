"""Pure: a measured step of several machines on one clock.

Monotonic clocks of two machines have nothing in common. Their wall clocks have, to a degree. What
certainly holds is the order of cause and effect: a sum over ranks ends at none of them before it
has begun at all. That bounds what two clocks differ by; a wall clock within the bounds is believed,
and one outside them is moved to the nearest.

     a   begins |-------------| ends          b cannot have begun after a has ended,
     b        begins |------------| ends      nor ended before a has begun
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bundlerun.launcher.run_folder.measured import MeasuredRank

_SHARED = "exchange"
"""The leg of a sync in which machines talk to each other."""


def on_one_clock(ranks: Sequence[MeasuredRank]) -> list[MeasuredRank]:
    """The ranks on the clock of the first machine, whose times begin with the step, seconds."""
    if not ranks:
        return []
    shifts = _shifts(ranks)
    moved = [_moved(rank, shifts[_machine(rank)]) for rank in ranks]
    begin_s = min(span.begin_s for rank in moved for span in rank.spans)
    return [_moved(rank, -begin_s) for rank in moved]


def _machine(rank: MeasuredRank) -> tuple[str, str]:
    return rank.node, rank.boot


def _moved(rank: MeasuredRank, by_s: float) -> MeasuredRank:
    spans = tuple(s._replace(begin_s=s.begin_s + by_s, end_s=s.end_s + by_s) for s in rank.spans)
    return replace(rank, spans=spans)


def _shifts(ranks: Sequence[MeasuredRank]) -> Mapping[tuple[str, str], float]:
    """What is added to the times of each machine."""
    first = ranks[0]
    shifts = {_machine(first): 0.0}
    for rank in ranks:
        machine = _machine(rank)
        if machine in shifts:
            continue
        believed = rank.wall_s - first.wall_s
        low, high = _bounds(
            [r for r in ranks if _machine(r) == _machine(first)],
            [r for r in ranks if _machine(r) == machine],
        )
        # Bounds that leave nothing: the spans are not what they seem, and the wall clock stays.
        shifts[machine] = min(max(believed, low), high) if low <= high else believed
    return shifts


def _bounds(here: Sequence[MeasuredRank], there: Sequence[MeasuredRank]) -> tuple[float, float]:
    """Between which shifts of `there` all sums that both take part in keep their order."""
    low, high = -math.inf, math.inf
    for mine in here:
        for other in there:
            if mine.stage != other.stage:
                continue
            for (begun_s, ended_s), (begun_there_s, ended_there_s) in zip(
                _sums(mine), _sums(other), strict=False
            ):
                low = max(low, begun_s - ended_there_s)
                high = min(high, ended_s - begun_there_s)
    return low, high


def _sums(rank: MeasuredRank) -> Iterator[tuple[float, float]]:
    """Of each bucket: no earlier than it has begun, and no later than it has ended.

    A leg tells twice of each bucket, when it begins and when it finishes it, and has two of them
    under way at most (`workers.sync.legs`): so the begin of the k-th is its span 2k-3 or 2k-2, and
    its end 2k-1 or 2k, from 0.
    """
    spans = [span for span in rank.spans if span.phase == _SHARED]
    for k in range(1, len(spans) // 2 + 1):
        begin, end = spans[max(0, 2 * k - 3)], spans[min(2 * k, len(spans) - 1)]
        yield begin.begin_s, end.end_s
