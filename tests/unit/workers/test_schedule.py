"""The schedule: who does what in which order."""

from __future__ import annotations

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.schedule import (
    Action,
    Pass,
    Schedule,
    bundle_schedule,
    draw,
    forward_only,
    simulate,
)

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def picture(shape: tuple[int, ...], num_microbatches: int) -> str:
    return "\n".join(draw(bundle_schedule(shape, num_microbatches)))


@pytest.mark.parametrize(
    ("shape", "num_microbatches", "wanted"),
    [
        (
            (1, 1),
            4,
            """
            0.0  F0 F1 B0 F2 B1 F3 B2 B3
            1.0  F0 B0 F1 B1 F2 B2 F3 B3
            """,
        ),
        (
            (2, 1),
            4,
            """
            0.0  F0 F2 B0 B2
            0.1  F1 F3 B1 B3
            1.0  F0 B0 F1 B1 F2 B2 F3 B3
            """,
        ),
        (
            (1, 1, 1),
            4,
            """
            0.0  F0 F1 F2 B0 F3 B1 B2 B3
            1.0  F0 F1 B0 F2 B1 F3 B2 B3
            2.0  F0 B0 F1 B1 F2 B2 F3 B3
            """,
        ),
    ],
)
def test_the_picture_is_the_schedule(
    shape: tuple[int, ...], num_microbatches: int, wanted: str
) -> None:
    assert picture(shape, num_microbatches) == dedent(wanted).strip()


@given(shapes, st.integers(0, 12))
def test_every_stage_does_each_pass_of_each_microbatch_once(
    shape: list[int], num_microbatches: int
) -> None:
    schedule = bundle_schedule(shape, num_microbatches)
    for stage, width in enumerate(shape):
        done = [a for r in range(width) for a in schedule[stage, r]]
        wanted = [Action(kind, j) for kind in Pass for j in range(num_microbatches)]
        assert sorted(map(str, done)) == sorted(map(str, wanted))


@given(shapes, st.integers(0, 12))
def test_no_schedule_waits_for_itself(shape: list[int], num_microbatches: int) -> None:
    ones = [1.0] * len(shape)
    assert simulate(bundle_schedule(shape, num_microbatches), ones, ones) is not None


@given(shapes, st.integers(1, 12))
def test_a_backward_that_comes_before_its_forward_is_a_deadlock(
    shape: list[int], num_microbatches: int
) -> None:
    schedule: Schedule = bundle_schedule(shape, num_microbatches)
    schedule[0, 0] = schedule[0, 0][::-1]
    assert simulate(schedule, [1.0] * len(shape), [1.0] * len(shape)) is None


@given(st.integers(1, 5), st.integers(1, 16))
def test_the_bubble_of_equal_stages_is_that_of_the_formula(
    num_stages: int, num_microbatches: int
) -> None:
    schedule = bundle_schedule((1,) * num_stages, num_microbatches)
    timeline = simulate(schedule, [1.0] * num_stages, [2.0] * num_stages)
    assert timeline is not None
    assert timeline.duration == pytest.approx(3.0 * (num_microbatches + num_stages - 1))


@given(shapes, st.integers(0, 12))
def test_an_evaluation_only_goes_forward(shape: list[int], num_microbatches: int) -> None:
    found = [
        a
        for stage, width in enumerate(shape)
        for r in range(width)
        for a in forward_only(shape, stage, r, num_microbatches)
    ]
    assert len(found) == len(shape) * num_microbatches
    assert {a.kind for a in found} <= {Pass.FORWARD}
