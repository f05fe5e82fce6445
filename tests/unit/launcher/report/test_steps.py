"""A measured step: on one clock, and as it would have been by plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.layout.schedule import Action, Pass
from bundlerun.launcher.report.clocks import on_one_clock
from bundlerun.launcher.report.planned import action_of, passes, planned
from bundlerun.launcher.run_folder.measured import MeasuredRank, Span


def rank(number: int, node: str, *spans: Span, wall_s: float = 0.0, stage: int = 0) -> MeasuredRank:
    return MeasuredRank(
        step=2, round="r", node=node, boot=node, rank=number, bundle=0, stage=stage, replica=0,
        chunks=1, wall_s=wall_s, host_bytes=0, device_bytes=0, spans=spans,
    )  # fmt: skip


def bucket(begin_s: float, end_s: float) -> tuple[Span, Span]:
    """As a leg tells of one: it begins, and it finishes."""
    return Span("exchange", begin_s, begin_s + 0.01), Span("exchange", end_s - 0.01, end_s)


def first_begin(ranks: list[MeasuredRank], number: int) -> float:
    return ranks[number].spans[0].begin_s


def test_ranks_of_one_machine_keep_their_times_from_the_begin_of_the_step() -> None:
    ranks = [rank(0, "a", Span("forward", 11.0, 12.0)), rank(1, "a", Span("forward", 10.5, 12.0))]
    moved = on_one_clock(ranks)
    assert (first_begin(moved, 0), first_begin(moved, 1)) == (0.5, 0.0)
    assert on_one_clock([]) == []


@pytest.mark.parametrize(
    ("skew_s", "begins_at"),
    [
        (0.0, 0.2),  # wall clocks agree: they are believed
        (0.1, 0.3),  # so they are as far as nothing speaks against it
        (50.0, 1.0),  # a sum that has begun only after it has ended: moved back, to its end
        (-50.0, -1.0),
    ],
)
def test_a_clock_is_believed_as_far_as_the_sums_of_both_machines_allow(
    skew_s: float, begins_at: float
) -> None:
    # The monotonic clock of b is 1,000 s behind that of a; its wall clock is wrong by `skew_s`.
    here = rank(0, "a", *bucket(5.0, 6.0), wall_s=1e9)
    there = rank(1, "b", *bucket(5.2 - 1000, 6.2 - 1000), wall_s=1e9 + 1000 + skew_s)
    moved = on_one_clock([here, there])
    assert first_begin(moved, 1) - first_begin(moved, 0) == pytest.approx(begins_at)


def test_machines_that_share_no_sum_go_by_their_wall_clocks() -> None:
    here = rank(0, "a", Span("forward", 5.0, 6.0), wall_s=100.0)
    there = rank(1, "b", Span("forward", 1.0, 2.0), wall_s=105.5)
    assert first_begin(on_one_clock([here, there]), 1) == pytest.approx(1.5)


def test_a_plan_has_the_passes_in_their_order_each_as_long_as_its_kind_took() -> None:
    front = rank(
        0, "a", Span("forward", 0, 1, "F0"), Span("forward", 5, 8, "F1"),
        Span("receive", 8, 9, "B0"), Span("backward", 9, 12, "B0"), Span("backward", 20, 21, "B1"),
    )  # fmt: skip
    rear = rank(
        1, "a", Span("forward", 1, 2, "F0"), Span("backward", 2, 4, "B0"),
        Span("forward", 8, 9, "F1"), Span("backward", 10, 12, "B1"), stage=1,
    )  # fmt: skip
    timeline = planned([front, rear])
    assert timeline is not None
    spans = {
        place: [(str(s.action), s.start, s.end) for s in spans]
        for place, spans in timeline.spans.items()
    }
    assert spans[0, 0] == [("F0", 0, 2), ("F1", 2, 4), ("B0", 5, 7), ("B1", 8, 10)]
    assert spans[1, 0] == [("F0", 2, 3), ("B0", 3, 5), ("F1", 5, 6), ("B1", 6, 8)]


def test_a_step_without_one_of_its_ranks_has_no_plan() -> None:
    rear = rank(1, "a", Span("forward", 1, 2, "F0"), Span("backward", 2, 4, "B0"), stage=1)
    assert planned([rear]) is None
    assert planned([replace(rear, spans=(Span("optimizer", 0, 1),))]) is None


def test_a_forward_that_was_done_ahead_stands_in_for_that_of_the_step() -> None:
    ahead = rank(0, "a", Span("backward", 1, 2, "B0"), Span("forward", 3, 4, "F0", 1))
    assert list(passes(ahead)) == [Action(Pass.FORWARD, 0), Action(Pass.BACKWARD, 0)]
    assert action_of("B3.1") == Action(Pass.BACKWARD, 3, 1)
    assert [action_of(text) for text in ("", "F", "X1", "F1.x", "F-1")] == [None] * 5
