"""What schedules come to in time: the published bubbles, full throughput, hidden transfers."""

from __future__ import annotations

from dataclasses import replace
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlerun.launcher.choices import ScheduleName
from bundlerun.launcher.layout.schedule import Pipeline, Schedule
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.timeline import Costs, Timeline, drawn, simulate

times = st.floats(0.2, 3.0)


def run(schedule: Schedule, costs: Costs) -> Timeline:
    timeline = simulate(schedule, costs)
    assert timeline is not None
    return timeline


def test_the_picture_is_the_timeline() -> None:
    timeline = run(Pipeline(shape=Shape((1, 1))).bundle(2), Costs.equal(2))
    wanted = """
        0.0  F0 F1       B0 --    B1 --
        1.0     F0 B0 -- F1 B1 --
        """
    assert "\n".join(drawn(timeline)) == dedent(wanted).strip()


def test_weight_passes_fill_the_bubble_in_the_picture() -> None:
    timeline = run(
        Pipeline(shape=Shape((1, 1, 1)), schedule="zero-bubble").bundle(4), Costs.equal(3)
    )
    wanted = """
        0.0  F0 F1 F2       B0 -- F3 B1 -- B2 -- B3 --
        1.0     F0 F1    B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        2.0        F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3
        """
    assert "\n".join(drawn(timeline)) == dedent(wanted).strip()
    assert set(timeline.in_flight.values()) == {3}


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 20), times, times)
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_the_bubble_of_equal_stages_is_that_of_the_formula(
    name: ScheduleName, num_stages: int, num_microbatches: int, forward: float, backward: float
) -> None:
    pipeline = Pipeline(shape=Shape((1,) * num_stages), schedule=name)
    costs = Costs.equal(num_stages, forward, backward)
    timeline = run(pipeline.bundle(num_microbatches), costs)
    assert timeline.bubble == pytest.approx((num_stages - 1) / num_microbatches)


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(2, 3), st.integers(0, 20))
def test_chunks_divide_the_bubble(num_stages: int, chunks: int, more: int) -> None:
    pipeline = Pipeline(
        shape=Shape((1,) * num_stages), schedule="interleaved", chunks_per_stage=chunks
    )
    num_microbatches = num_stages + more
    timeline = run(pipeline.bundle(num_microbatches), Costs.equal(pipeline.num_chunks))
    assert timeline.bubble == pytest.approx((num_stages - 1) / (chunks * num_microbatches))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 20))
def test_weight_passes_leave_a_third_of_the_bubble(num_stages: int, more: int) -> None:
    num_microbatches = num_stages + more
    pipeline = Pipeline(shape=Shape((1,) * num_stages), schedule="zero-bubble")
    timeline = run(pipeline.bundle(num_microbatches), Costs.equal(num_stages))
    assert timeline.bubble == pytest.approx((num_stages - 1) / (3 * num_microbatches))


@settings(max_examples=30, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", ["1f1b", "eager-1f1b", "zero-bubble", "interleaved"])
def test_the_narrowest_stage_sets_the_pace(name: ScheduleName, data: st.DataObject) -> None:
    """Whatever the widths and the times, once the pipeline is full."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    chunks = 2 if name == "interleaved" else 1
    forward, backward, weight = (
        data.draw(st.lists(times, min_size=len(shape), max_size=len(shape))) for _ in range(3)
    )
    weight = [min(w, 0.8 * b) for w, b in zip(weight, backward, strict=True)]
    costs = Costs(forward=forward * chunks, backward=backward * chunks, weight=weight * chunks)
    num_microbatches = 30 * sum(shape)
    slow = data.draw(st.frozensets(st.integers(0, len(shape) - 2)))
    pipeline = Pipeline(shape=Shape(shape), schedule=name, chunks_per_stage=chunks, slow_links=slow)
    timeline = run(pipeline.bundle(num_microbatches), costs)
    pace = max((f + b) / w for f, b, w in zip(forward, backward, shape, strict=True)) * chunks
    assert num_microbatches * pace >= 0.9 * timeline.duration


def test_warm_ups_are_rounded_up_at_each_stage() -> None:
    """Rounded once, over all widths behind, the front would lead by 3 and lose a third."""
    timeline = run(
        Pipeline(shape=Shape((1, 2, 1))).bundle(100), Costs(forward=[1, 2, 1], backward=[2, 4, 2])
    )
    assert timeline.in_flight[0, 0] == 5
    assert timeline.duration < 3 * 100 + 15


def test_one_more_on_the_way_hides_the_transfers_of_a_slow_link() -> None:
    costs = Costs(forward=[20, 20], backward=[40, 40], transfer=[20])

    def duration(name: ScheduleName) -> float:
        pipeline = Pipeline(shape=Shape((1, 1)), schedule=name, slow_links=frozenset({0}))
        return run(pipeline.bundle(8), costs).duration

    # Without transfers 540; fill and drain show one each way.
    assert duration("eager-1f1b") == 540 + 2 * 20
    # The rear starts after one forward and one transfer, and never waits.
    assert duration("zero-bubble") == 480 + 20 + 20
    assert duration("1f1b") > 540 + 5 * 20


@settings(deadline=None)
@given(st.integers(2, 5), times, times)
def test_eager_keeps_pace_with_links_that_take_half_a_period_each_way(
    num_stages: int, forward: float, backward: float
) -> None:
    slow = frozenset(range(num_stages))
    pipeline = Pipeline(shape=Shape((1,) * num_stages), schedule="eager-1f1b", slow_links=slow)
    costs = Costs.equal(num_stages, forward, backward)
    transfer = [(forward + backward) / 2] * (num_stages - 1)
    timeline = run(pipeline.bundle(100), replace(costs, transfer=transfer))
    fill = (num_stages - 1) * (forward + backward + 2 * transfer[0])
    assert timeline.duration == pytest.approx(100 * (forward + backward) + fill)


def test_messages_of_a_link_follow_each_other() -> None:
    schedule = Pipeline(shape=Shape((1, 1)), schedule="gpipe").bundle(3)
    timeline = run(schedule, Costs(forward=[1, 1], backward=[1, 1], transfer=[5]))
    forwards = [span.start for span in timeline.spans[1, 0][:3]]
    assert forwards == [6, 11, 16]


def test_a_step_without_microbatches_takes_no_time() -> None:
    timeline = run(Pipeline(shape=Shape((2, 1))).bundle(0), Costs.equal(2))
    assert (timeline.duration, timeline.bubble) == (0, 0)
    assert list(drawn(timeline)) == ["0.0", "0.1", "1.0"]
