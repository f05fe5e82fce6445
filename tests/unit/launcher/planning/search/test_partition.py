from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, combinations, pairwise
from math import inf

import pytest

from bundlerun.launcher.planning.search.partition import Stage, Way, partition


def stage_of(rng: random.Random, work: Sequence[float], *, has_limit: bool) -> Stage:
    """Costs that grow with the end and fall with the start, one way or two."""
    sums = list(accumulate(work, initial=0.0))
    ways = []
    for factor, longest in ((1.0, 2), (1.4, 4))[: 1 + has_limit]:
        load = factor * rng.choice([1.0, 2.0, 3.0])
        ends = [load * value for value in sums]
        fill = rng.choice([0.0, 1.0])
        starts = [load * value - fill * value for value in sums]
        more = [value + 0.5 * end for end, value in enumerate(ends)]
        first = [max(0, end - longest) for end in range(len(sums))] if has_limit else []
        ways.append(Way(lines=[(ends, starts), (more, more)], first=first))
    entry = [rng.uniform(0, 6) for _ in sums] if rng.random() < 0.5 else []
    return Stage(ways=ways, entry=entry)


def by_force(stages: Sequence[Stage], num_pieces: int) -> float:
    least = inf
    for cuts in combinations(range(1, num_pieces), len(stages) - 1):
        parts = pairwise((0, *cuts, num_pieces))
        costs = [s.cost(*part) for s, part in zip(stages, parts, strict=True)]
        least = min(least, max(costs))
    return least


@pytest.mark.parametrize("has_limit", [False, True])
def test_no_other_cuts_have_a_cheaper_costliest_stage(has_limit: bool) -> None:
    rng = random.Random(3)
    impossible = 0
    for _ in range(150):
        num_pieces = rng.randint(2, 8)
        work = [rng.choice([0.0, 1.0, rng.uniform(0, 3)]) for _ in range(num_pieces)]
        count = rng.randint(1, min(4, num_pieces))
        stages = [stage_of(rng, work, has_limit=has_limit) for _ in range(count)]
        stages[0] = Stage(ways=stages[0].ways)
        least, starts = partition(stages, num_pieces)
        assert least == pytest.approx(by_force(stages, num_pieces))
        if least == inf:
            impossible += 1
            continue
        parts = pairwise((0, *starts, num_pieces))
        costs = [s.cost(*part) for s, part in zip(stages, parts, strict=True)]
        assert max(costs) == least
    assert impossible > 0 if has_limit else impossible == 0


def test_2000_boundaries_and_16_stages_are_looked_up_not_tried() -> None:
    """The number of costs that are worked out is what takes the time, on any machine."""
    num_pieces, looked = 2001, 0

    class Counted(list[float]):
        def __getitem__(self, index: object) -> float:  # type: ignore[override]
            nonlocal looked
            looked += 1
            return list.__getitem__(self, index)  # type: ignore[call-overload, no-any-return]

    rng = random.Random(1)
    sums = list(accumulate((rng.uniform(0.5, 2.0) for _ in range(num_pieces)), initial=0.0))
    line = [16 * value for value in sums], Counted(16 * value - value for value in sums)
    least, starts = partition([Stage(ways=[Way(lines=[line])])] * 16, num_pieces)
    assert len(starts) == 15
    assert 16 * sums[-1] / 16 < least < 1.7 * sums[-1]
    assert looked < 20 * 16 * num_pieces  # all pairs of start and end would be 32 million
