from __future__ import annotations

import pytest

from bundlerun.workers.snapshot.pace import Pace, interval


@pytest.mark.parametrize(
    ("cost_s", "step_s", "every"),
    [(0.001, 1.0, 1), (0.0079, 1.0, 1), (0.0081, 1.0, 2), (0.04, 0.8, 7), (0.99, 0.01, 12_375)],
)
def test_the_interval_keeps_the_cost_below_a_hundredth(
    cost_s: float, step_s: float, every: int
) -> None:
    assert interval(cost_s, step_s) == every


def test_it_adapts_after_4_16_and_64_steps() -> None:
    pace = Pace()
    due = [n for n in range(1, 300) if pace.stepped(0.1)]
    assert due == [4, 16, 64, 256]


def test_a_given_interval_stays() -> None:
    pace = Pace(every=3)
    assert [step for step in range(10) if pace.is_due(step)] == [0, 3, 6, 9]
    assert not any(pace.stepped(0.1) for _ in range(100))


def test_the_first_snapshots_do_not_count_for_they_take_their_memory() -> None:
    pace = Pace()
    for cost in (9.0, 9.0, 0.1, 0.3, 0.2):
        pace.taken(cost)
        pace.stepped(1.0)
    assert pace.measured() == (0.2, 1.0)
    assert pace.measured() == (0.0, 0.0)


def test_a_review_without_a_measurement_changes_nothing() -> None:
    pace = Pace()
    assert pace.review(4 * 0.05, 4 * 1.0)
    assert pace.every == 7
    assert not pace.review(0.0, 4.0)
    assert not pace.review(0.2, 4.0)
    assert pace.every == 7
    assert pace.review(0.02, 4.0)
    assert pace.every == 1
