"""Which cuts make parts of about equal cost; plain numbers in, plain numbers out.

costs   3 1 1 | 4 | 2 2        three parts, cuts (3, 4), largest part 5
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

from bundlerun.launcher.errors import ConfigError

SLACK = 0.03
"""How much larger than the smallest possible the largest part may be, for a cheaper boundary."""


def balanced_cuts(
    costs: Sequence[float], num_parts: int, shares: Sequence[float] = ()
) -> tuple[int, ...]:
    """Where to cut a row of costs so that the largest part is as small as it can be.

    Args:
        costs: cost of each piece, in order, 0 or more, any unit.
        num_parts: parts to make; each gets one piece at least.
        shares: of the whole for each part, any unit; parts are as large as their share is. Nothing:
            equal ones.

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
    # Dynamic programming over (part, end); from the end back, the cuts can be read off.
    starts = _best_starts(sums, num_parts, shares or [1] * num_parts)
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


def _best_starts(sums: Sequence[float], num_parts: int, shares: Sequence[float]) -> list[list[int]]:
    """Per part and end, where the part starts when the pieces before the end are cut best."""
    num_pieces = len(sums) - 1
    largest = [total / shares[0] for total in sums]
    starts = [[0] * (num_pieces + 1)]
    for part in range(1, num_parts):
        found = [0] * (num_pieces + 1)
        best = [inf] * (num_pieces + 1)
        is_last = part == num_parts - 1
        # The last part ends with the row, so that its other ends are not worked out.
        for end in [num_pieces] if is_last else range(part + 1, num_pieces + 1):
            # Backwards: the part's own cost grows with each step, which ends the search early.
            for start in range(end - 1, part - 1, -1):
                own = (sums[end] - sums[start]) / shares[part]
                if own >= best[end]:
                    break  # it only grows from here on
                if largest[start] < best[end]:
                    best[end], found[end] = max(own, largest[start]), start
        starts.append(found)
        largest = best
    return starts


def cheap_cuts(
    costs: Sequence[float], prices: Sequence[float], shares: Sequence[float]
) -> tuple[int, ...]:
    """The cuts with the lowest price among those that are about as balanced as can be.

    Args:
        costs: cost of each piece, in order.
        prices: of a cut before each piece.
        shares: of the whole for each part.

    Returns:
        As `balanced_cuts`.

    Raises:
        ConfigError: there are fewer pieces than parts.
    """
    best = part_costs(costs, balanced_cuts(costs, len(shares), shares))
    # The cap: what the largest part may be, by the best balance there is.
    cap = (1 + SLACK) * max(cost / share for cost, share in zip(best, shares, strict=True))
    sums = list(accumulate(costs, initial=0))
    num_pieces = len(costs)
    # The lowest price up to each end with parts below the cap; inf: no such cuts.
    paid = [0.0 if total <= cap * shares[0] else inf for total in sums]
    starts: list[dict[int, int]] = []
    for part, share in enumerate(shares[1:], start=1):
        ends = [num_pieces] if part == len(shares) - 1 else range(part + 1, num_pieces + 1)
        now, found = [inf] * (num_pieces + 1), dict[int, int]()
        for end in ends:
            # Earlier starts would put this part over the cap.
            first = max(part, bisect_left(sums, sums[end] - cap * share))
            start = min(range(first, end), key=lambda s: paid[s] + prices[s], default=end)
            if start < end:
                now[end], found[end] = paid[start] + prices[start], start
        paid = now
        starts.append(found)
    cuts: list[int] = []
    end = num_pieces
    # Back from the end, along the starts that were best.
    for found in reversed(starts):
        end = found[end]
        cuts.append(end)
    return tuple(reversed(cuts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A place to cut.

    place: of the first step behind it.
    price: of a cut there.
    name: of it.
    """

    place: int
    price: float
    name: str


def cheapest_options(
    steps: Sequence[float], options: Sequence[Option], shares: Sequence[float]
) -> tuple[str, ...]:
    """The names of the options to cut at, chosen as `cheap_cuts` does.

    Args:
        steps: cost of each step, in order.
        options: in order; as many as there are cuts at least.
        shares: of the whole for each part.
    """
    # Where nothing is done between several options, the cheapest stands for all.
    done = list(accumulate(steps, initial=0))
    places: dict[float, Option] = {}
    for option in options:
        known = places.setdefault(done[option.place], option)
        if option.price < known.price:
            places[done[option.place]] = option
    chosen: Sequence[Option] = list(places.values())
    # Too few that differ in work: some parts will have next to none.
    if len(chosen) < len(shares) - 1:
        chosen = options
    starts = [0, *(option.place for option in chosen), len(steps)]
    costs = [sum(steps[a:b]) for a, b in pairwise(starts)]
    prices = [0, *(option.price for option in chosen)]
    return tuple(chosen[i - 1].name for i in cheap_cuts(costs, prices, shares))


def part_costs(costs: Sequence[float], cuts: Sequence[int]) -> list[float]:
    """The cost of each part that `cuts` make."""
    return [sum(costs[start:end]) for start, end in pairwise((0, *cuts, len(costs)))]
