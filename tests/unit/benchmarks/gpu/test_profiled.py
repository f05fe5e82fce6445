from __future__ import annotations

import pytest

from benchmarks.gpu.profiled import joined, share_under


def test_stretches_that_touch_are_one() -> None:
    assert joined([(5, 7), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 7)]


@pytest.mark.parametrize(
    ("spans", "cover", "share"),
    [
        ([(0, 10)], [(0, 5), (4, 6)], 0.6),
        ([(0, 2), (1, 3)], [(1, 2)], 0.5),  # each copy counts for itself
        ([(0, 1)], [], 0.0),
        ([(2, 4)], [(0, 9)], 1.0),
        ([], [(0, 9)], 1.0),
    ],
)
def test_the_share_of_time_under_others(
    spans: list[tuple[float, float]], cover: list[tuple[float, float]], share: float
) -> None:
    assert share_under(spans, cover) == pytest.approx(share)
