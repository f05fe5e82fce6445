"""When micro-batches are shared out anew, played step by step with made-up speeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.data.feed import SharePlan
from bundlerun.workers.shares.balance import (
    LEAST_STEPS,
    Balance,
    Change,
    is_memory_kept,
)
from bundlerun.workers.shares.spent import Spent

TWO = Topology(Shape((1,)), (1, 1))
Speed = Callable[[int, int], float]
"""Seconds of a micro-batch, by step and rank."""


class Play:
    """A run whose passes take what is said."""

    def __init__(self, topology: Topology, num_microbatches: int, asked_ahead: int = 1) -> None:
        self.plan = SharePlan(topology.num_bundles)
        self._topology = topology
        self._num = num_microbatches
        self._asked_ahead = asked_ahead
        self.balance = Balance(topology, num_microbatches, lambda: self.plan.counts(self._num))
        self._spent = {rank: Spent() for rank in topology.active_ranks}
        self.step = 0
        self.changes: list[tuple[int, Change]] = []
        self.counts: list[list[int]] = []
        """Of each step."""

    def run(self, num_steps: int, speed: Speed) -> None:
        for _ in range(num_steps):
            # Numbers travel as a step begins: that step itself is not in them.
            told = {
                rank: each._replace(asked_for=float(self.step + self._asked_ahead))
                for rank, each in self._spent.items()
            }
            counts = self.plan.counts(self._num, self.step)
            self.counts.append(counts)
            for bundle, ranks in enumerate(self._topology.bundles):
                for rank in ranks:
                    took = counts[bundle] * speed(self.step, rank)
                    was = self._spent[rank]
                    self._spent[rank] = Spent(
                        was.compute_s + took, was.wall_s + 0.1, 0.0,
                        was.num_microbatches + counts[bundle],
                    )  # fmt: skip
            self.step += 1
            change = self.balance.see(self.step, told)
            if change is not None:
                self.changes.append((self.step, change))
                self.plan.change(change.first_step, change.speeds)


def half_from(step: int, rank: int) -> Speed:
    return lambda now, who: 0.02 if who == rank and now >= step else 0.01


def test_a_rank_of_half_the_speed_gets_half_as_many_within_twenty_steps() -> None:
    play = Play(TWO, 12)
    play.run(50, half_from(50, 1))
    assert play.changes == []
    play.run(50, half_from(50, 1))
    ((decided, change),) = play.changes
    assert change.before == (6, 6)
    assert change.counts == (8, 4)
    assert change.slowest == 1
    assert change.span_s == pytest.approx(0.08)
    assert change.span_before_s == pytest.approx(0.12)
    assert decided < change.first_step <= 70
    assert play.counts[change.first_step - 1] == [6, 6]
    assert play.counts[change.first_step] == [8, 4]


def test_a_small_gain_needs_more_windows_than_a_large_one() -> None:
    decided = []
    for times in (1.25, 2.0):
        play = Play(TWO, 64)
        play.run(100, lambda step, rank, times=times: 0.01 * (times if step >= 50 and rank else 1))
        decided.append(play.changes[0][0] - 50)
    assert decided[0] > 2 * decided[1]


def test_it_gets_them_back_when_it_is_as_fast_as_before() -> None:
    play = Play(TWO, 12)
    play.run(50, half_from(10, 1))
    play.run(100, lambda step, rank: 0.01)
    assert [change.counts for _, change in play.changes] == [(8, 4), (6, 6)]


def test_no_step_that_was_asked_for_changes_its_shares() -> None:
    play = Play(TWO, 12, asked_ahead=9)
    play.run(60, half_from(10, 1))
    ((decided, change),) = play.changes
    # As the last step begins, samples of nine more had been asked for.
    assert change.first_step == decided - 1 + 9 + 1


def test_noise_moves_nothing_to_and_fro() -> None:
    noise = random.Random(1)
    play = Play(TWO, 64)
    play.run(2000, lambda step, rank: 0.01 * noise.uniform(0.85, 1.15))
    assert play.changes == []


def test_a_hitch_of_a_window_is_no_reason() -> None:
    play = Play(TWO, 12)
    hitch = range(20, 20 + LEAST_STEPS)
    play.run(60, lambda step, rank: 0.05 if rank == 1 and step in hitch else 0.01)
    assert play.changes == []


def test_a_rank_that_changes_all_the_time_is_followed_ever_more_slowly() -> None:
    play = Play(TWO, 12)
    play.run(1000, lambda step, rank: 0.02 if rank == step // 12 % 2 else 0.01)
    assert 0 < len(play.changes) < 1000 / 12 / 4


def test_the_slowest_stage_is_what_a_bundle_takes_and_the_others_fill_it() -> None:
    # Two bundles of two stages; rank 3 is the second stage of bundle 1.
    play = Play(Topology(Shape((1, 1)), (2, 2)), 12)
    play.run(40, half_from(0, 3))
    _, change = play.changes[0]
    assert change.slowest == 3
    assert change.speeds.seconds == pytest.approx((0.01, 0.02))
    assert change.speeds.fill_s == pytest.approx((0.01, 0.01))
    assert change.counts == (8, 4)


def test_replicas_of_a_stage_take_turns_and_the_slowest_of_them_counts() -> None:
    # Each does half of its bundle's, so what it takes per micro-batch of that is half, too.
    topology = Topology(Shape((2,)), (2, 2))
    play = Play(topology, 12)
    play.run(40, lambda step, rank: 0.01 if rank == 2 else 0.005)
    _, change = play.changes[0]
    assert change.slowest == 2
    assert change.speeds.seconds == pytest.approx((0.005, 0.01))
    # The first micro-batch is one rank's alone.
    assert change.speeds.fill_s == pytest.approx((0.005, 0.01))


def test_a_bundle_that_is_hopeless_gets_nothing_and_stays_as_it_was_known() -> None:
    play = Play(TWO, 4)
    play.run(200, lambda step, rank: 1.0 if rank == 1 else 0.01)
    assert play.counts[-1] == [4, 0]
    assert len(play.changes) == 1


def test_equal_runs_decide_equally() -> None:
    found = []
    for _ in range(2):
        draw = random.Random(7).uniform
        play = Play(Topology(Shape((1,)), (1, 1, 1)), 24)
        play.run(200, lambda step, rank, draw=draw: 0.01 * draw(0.5, 2) * (1 + rank))
        found.append(play.changes)
    assert found[0] == found[1] != []


@pytest.mark.parametrize(
    ("schedule", "widths", "num_microbatches", "is_kept"),
    [
        ("1f1b", (1,), 8, True),
        ("gpipe", (1, 1), 8, False),
        ("1f1b", (1, 1), 8, True),
        # An equal share is two: with more, four stages hold more.
        ("1f1b", (1, 1, 1, 1), 4, False),
        ("1f1b", (1, 1, 1, 1), 16, True),
        ("zero-bubble", (1, 1, 1), 24, True),
    ],
)
def test_shares_change_where_nobody_holds_more_at_once(
    schedule: str, widths: tuple[int, ...], num_microbatches: int, is_kept: bool
) -> None:
    pipeline = replace(Pipeline(shape=Shape(widths)), schedule=schedule)  # type: ignore[arg-type]
    assert is_memory_kept(pipeline, num_microbatches, 2) == is_kept
