"""Which cuts make parts of about equal cost; plain numbers in, plain numbers out.

costs   3 1 | 1 4 | 2 2        three parts, cuts (3, 4), largest part 5
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from launcher.errors import ConfigError


def balanced_cuts(costs: Sequence[float], num_parts: int) -> tuple[int, ...]:
    """Where to cut a row of costs so that the largest part is as small as it can be.

    Args:
        costs: cost of each piece, in order, 0 or more, any unit.
        num_parts: parts to make; each gets one piece at least.

    Returns:
        The index of the first piece of each part but the first, increasing.

    Raises:
        ConfigError: there are fewer pieces than parts.
    """
    if not 1 <= num_parts <= len(costs):
        raise ConfigError(
            f"{len(costs)} pieces do not make {num_parts} parts; use 1 to {len(costs)}"
        )
    sums = list(accumulate(costs, initial=0))
    starts = _best_starts(sums, num_parts)
    cuts: list[int] = []
    end = len(costs)
    for part in range(num_parts - 1, 0, -1):
        start = starts[part][end]
        # Pieces that cost nothing go to the part before, so that a part begins with work.
        while start + 1 < end and costs[start] == 0:
            start += 1
        cuts.append(start)
        end = start
    return tuple(reversed(cuts))


def _best_starts(sums: Sequence[float], num_parts: int) -> list[list[int]]:
    """Per part and end, where the part starts when the pieces before the end are cut best.

    The largest of the parts before the start grows with the start and the part itself shrinks, so
    the best start is where the two meet, found by bisection.
    """
    num_pieces = len(sums) - 1
    largest = list(sums)
    starts = [[0] * (num_pieces + 1)]
    for part in range(1, num_parts):
        found = [0] * (num_pieces + 1)
        best = list(largest)
        for end in range(part + 1, num_pieces + 1):
            meet = bisect_left(
                range(part, end - 1), True, key=lambda s: largest[s] >= sums[end] - sums[s]
            )
            options = [start for start in (part + meet - 1, part + meet) if start >= part]
            found[end] = min(options, key=lambda s: max(largest[s], sums[end] - sums[s]))
            best[end] = max(largest[found[end]], sums[end] - sums[found[end]])
        starts.append(found)
        largest = best
    return starts


def part_costs(costs: Sequence[float], cuts: Sequence[int]) -> list[float]:
    """The cost of each part that `cuts` make."""
    return [sum(costs[start:end]) for start, end in pairwise((0, *cuts, len(costs)))]
