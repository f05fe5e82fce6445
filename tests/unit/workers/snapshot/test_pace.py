from __future__ import annotations

import pytest

from bundlerun.workers.snapshot.pace import Pace, interval, wanted_in_trial


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


def due_in(steps: range) -> str:
    """Which steps of a round, by number, have a snapshot for the trial (s) or for it none (-)."""
    return "".join({True: "s", False: "-", None: "."}[wanted_in_trial(n)] for n in steps)


def test_a_trial_leaves_snapshots_out_in_blocks_before_a_review() -> None:
    assert due_in(range(16)) == "....----ssss----"
    assert due_in(range(16, 64)) == 32 * "." + "ssss----ssss----"
    assert due_in(range(200, 256)) == 40 * "." + "ssss----ssss----"


def trained(pace: Pace, steps: range, cost_s: float, lag: int = 0) -> list[int]:
    """Steps of 1 s that a copy makes `cost_s` longer, felt so many steps later; which were kept."""
    kept: list[int] = []
    for number in steps:
        slow = number - 1 - lag in kept
        if pace.is_due(number + 1):
            kept.append(number)
        pace.taken(0.0)
        if pace.stepped(1.0 + cost_s * slow):
            pace.review(*(4 * value for value in pace.measured()))
    return kept


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(("cost_s", "every"), [(0.0, 1), (0.009, 1), (0.011, 2), (0.2, 20)])
def test_where_no_clock_shows_the_cost_steps_with_and_without_do(
    cost_s: float, every: int, lag: int
) -> None:
    pace = Pace(compares=True)
    kept = trained(pace, range(48), cost_s, lag)
    assert pace.every == every
    # Outside of trials as said, whatever the thread's clock has seen.
    assert [n for n in kept if n >= 16] == [n for n in range(16, 48) if (n + 1) % every == 0]
    trained(pace, range(48, 64), cost_s, lag)
    assert pace.every == every


def test_snapshots_that_cost_nothing_any_more_are_taken_after_each_step_again() -> None:
    pace = Pace(compares=True)
    trained(pace, range(16), 0.095)
    assert pace.every == 10
    trained(pace, range(16, 64), -0.001)  # by chance the steps with one were faster
    assert pace.every == 1


def test_a_given_interval_is_not_tried_out() -> None:
    pace = Pace(every=2, compares=True)
    assert trained(pace, range(16), 0.5) == [1, 3, 5, 7, 9, 11, 13, 15]
