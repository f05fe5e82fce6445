"""The schedules: who does what in which order."""

from __future__ import annotations

from collections import defaultdict
from textwrap import dedent
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlerun.launcher.choices import ScheduleName
from bundlerun.launcher.layout.schedule import (
    Action,
    Pass,
    Pipeline,
    Schedule,
    group_sizes,
    last_backwards,
    num_warmups,
)
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.timeline import Costs, max_in_flight, simulate
from bundlerun.launcher.layout.topology import Topology


@st.composite
def pipelines(
    draw: st.DrawFn, names: tuple[ScheduleName, ...] = get_args(ScheduleName), widest: int = 5
) -> Pipeline:
    name = draw(st.sampled_from(names))
    is_interleaved = name == "interleaved"
    shape = draw(st.lists(st.integers(1, widest), min_size=1 + is_interleaved, max_size=5))
    return Pipeline(
        shape=Shape(tuple(shape)),
        schedule=name,
        chunks_per_stage=draw(st.integers(2, 3)) if is_interleaved else 1,
        slow_links=draw(st.frozensets(st.integers(0, 4))),
    )


counts = st.integers(0, 30)


def drawn_orders(schedule: Schedule) -> str:
    return "\n".join(
        f"{stage}.{replica}  {' '.join(map(str, order))}"
        for (stage, replica), order in schedule.items()
    )


PICTURES = {
    "1f1b of two stages": (
        Pipeline(shape=Shape((1, 1))),
        """
        0.0  F0 F1 B0 F2 B1 F3 B2 B3
        1.0  F0 B0 F1 B1 F2 B2 F3 B3
        """,
    ),
    "1f1b, two replicas in front": (
        Pipeline(shape=Shape((2, 1))),
        """
        0.0  F0 F2 B0 B2
        0.1  F1 F3 B1 B3
        1.0  F0 B0 F1 B1 F2 B2 F3 B3
        """,
    ),
    "1f1b of three stages": (
        Pipeline(shape=Shape((1, 1, 1))),
        """
        0.0  F0 F1 F2 B0 F3 B1 B2 B3
        1.0  F0 F1 B0 F2 B1 F3 B2 B3
        2.0  F0 B0 F1 B1 F2 B2 F3 B3
        """,
    ),
    "gpipe": (
        Pipeline(shape=Shape((1, 1)), schedule="gpipe"),
        """
        0.0  F0 F1 F2 F3 B0 B1 B2 B3
        1.0  F0 F1 F2 F3 B0 B1 B2 B3
        """,
    ),
    "eager-1f1b": (
        Pipeline(shape=Shape((1, 1, 1)), schedule="eager-1f1b", slow_links=frozenset({1})),
        """
        0.0  F0 F1 F2 F3 B0 B1 B2 B3
        1.0  F0 F1 F2 B0 F3 B1 B2 B3
        2.0  F0 B0 F1 B1 F2 B2 F3 B3
        """,
    ),
    "zero-bubble": (
        Pipeline(shape=Shape((1, 1, 1)), schedule="zero-bubble"),
        """
        0.0  F0 F1 F2 B0 F3 B1 B2 B3
        1.0  F0 F1 B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        2.0  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3
        """,
    ),
    "interleaved": (
        Pipeline(shape=Shape((1, 1)), schedule="interleaved", chunks_per_stage=2),
        """
        0.0  F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3
        1.0  F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3
        """,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_the_schedule(name: str) -> None:
    pipeline, wanted = PICTURES[name]
    assert drawn_orders(pipeline.bundle(4)) == dedent(wanted).strip()


@settings(deadline=None)
@given(pipelines(), counts)
def test_every_stage_does_each_pass_of_each_microbatch_once(
    pipeline: Pipeline, num_microbatches: int
) -> None:
    schedule = pipeline.bundle(num_microbatches)
    has_weight_passes = pipeline.schedule == "zero-bubble"
    for stage, width in enumerate(pipeline.shape.widths):
        done = [a for r in range(width) for a in schedule[stage, r]]
        kinds = [Pass.FORWARD, Pass.BACKWARD]
        kinds += [Pass.WEIGHT] if has_weight_passes and stage > 0 else []
        wanted = [
            Action(kind, j, chunk)
            for kind in kinds
            for j in range(num_microbatches)
            for chunk in range(pipeline.chunks_per_stage)
        ]
        assert sorted(map(str, done)) == sorted(map(str, wanted))


@settings(deadline=None)
@given(pipelines(), counts)
def test_a_replica_takes_its_turn(pipeline: Pipeline, num_microbatches: int) -> None:
    for (stage, replica), order in pipeline.bundle(num_microbatches).items():
        assert {a.microbatch % pipeline.shape.widths[stage] for a in order} <= {replica}


@settings(deadline=None)
@given(pipelines(), counts)
def test_no_schedule_waits_for_itself(pipeline: Pipeline, num_microbatches: int) -> None:
    costs = Costs.equal(pipeline.num_chunks)
    assert simulate(pipeline.bundle(num_microbatches), costs) is not None


@settings(deadline=None)
@given(pipelines(), counts)
def test_both_ends_of_a_link_have_one_order(pipeline: Pipeline, num_microbatches: int) -> None:
    """Links are first in, first out: what is sent first is taken first."""
    stages, last = pipeline.shape.num_stages, pipeline.num_chunks - 1
    sent: dict[object, list[int]] = defaultdict(list)
    taken: dict[object, list[int]] = defaultdict(list)
    for (stage, replica), order in pipeline.bundle(num_microbatches).items():
        for kind, j, own_chunk in order:
            chunk = own_chunk * stages + stage
            if kind is Pass.WEIGHT:
                continue
            ahead, behind = (
                (chunk + 1, chunk - 1) if kind is Pass.FORWARD else (chunk - 1, chunk + 1)
            )
            if 0 <= ahead <= last:
                peer = j % pipeline.shape.widths[ahead % stages]
                sent[kind, chunk, replica, peer].append(j)
            if 0 <= behind <= last:
                peer = j % pipeline.shape.widths[behind % stages]
                taken[kind, behind, peer, replica].append(j)
            if kind is Pass.FORWARD and chunk == 0 < last:
                sent["target", replica, j % pipeline.shape.widths[-1]].append(j)
            if kind is Pass.FORWARD and chunk == last > 0:
                taken["target", j % pipeline.shape.widths[0], replica].append(j)
    assert sent == taken


@settings(deadline=None)
@given(pipelines(), counts)
def test_a_chunks_last_backward_comes_after_the_ranks_last_forward(
    pipeline: Pipeline, num_microbatches: int
) -> None:
    for order in pipeline.bundle(num_microbatches).values():
        forwards = [i for i, a in enumerate(order) if a.kind is Pass.FORWARD]
        last = last_backwards(order)
        assert sorted(last.values()) == sorted({a.chunk for a in order})
        assert all(index > forwards[-1] for index in last)
        for index, chunk in last.items():
            assert all(a.chunk != chunk for a in order[index + 1 :])


@settings(deadline=None)
@given(pipelines(), st.integers(1, 12))
def test_a_backward_that_comes_before_its_forward_is_a_deadlock(
    pipeline: Pipeline, num_microbatches: int
) -> None:
    schedule = pipeline.bundle(num_microbatches)
    schedule[0, 0] = schedule[0, 0][::-1]
    assert simulate(schedule, Costs.equal(pipeline.num_chunks)) is None


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=8))
def test_in_1f1b_no_rank_holds_more_than_the_bundle_has_ranks_and_rounding(
    shape: list[int],
) -> None:
    for stage, (width, number) in enumerate(zip(shape, num_warmups(shape), strict=True)):
        rounding = sum(w - 1 for w in shape[stage:])
        assert (number + 1) * width <= sum(shape[stage:]) + rounding
        assert (number + 1) * width >= sum(shape[stage:])


@settings(deadline=None)
@given(pipelines(("eager-1f1b", "zero-bubble")), counts)
def test_no_rank_holds_more_than_the_one_with_the_longest_warm_up(
    pipeline: Pipeline, num_microbatches: int
) -> None:
    most = max(num_warmups(pipeline.shape.widths, pipeline.slow_links)) + 1
    for order in pipeline.bundle(num_microbatches).values():
        assert max_in_flight(order) <= most


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 200))
def test_groups_cover_the_microbatches_and_fill_the_pipeline(
    shape: list[int], num_microbatches: int
) -> None:
    groups = group_sizes(shape, num_microbatches)
    assert sum(groups) >= num_microbatches
    assert all(size >= sum(shape) and size % width == 0 for size in groups for width in shape)
    assert max(groups) < 2 * group_sizes(shape, 0)[0]


@settings(deadline=None)
@given(pipelines(), counts)
def test_an_evaluation_only_goes_forward(pipeline: Pipeline, num_microbatches: int) -> None:
    schedule = {
        (stage, replica): pipeline.forward_order(stage, replica, num_microbatches)
        for stage, width in enumerate(pipeline.shape.widths)
        for replica in range(width)
    }
    found = [action for order in schedule.values() for action in order]
    assert len(found) == pipeline.num_chunks * num_microbatches
    assert {a.kind for a in found} <= {Pass.FORWARD}
    assert simulate(schedule, Costs.equal(pipeline.num_chunks)) is not None


@settings(deadline=None)
@given(pipelines(), st.integers(0, 100))
def test_an_evaluation_needs_no_more_room_on_a_link_than_the_bundle_gives_it(
    pipeline: Pipeline, num_microbatches: int
) -> None:
    schedule = {
        (stage, replica): pipeline.forward_order(stage, replica, num_microbatches)
        for stage, width in enumerate(pipeline.shape.widths)
        for replica in range(width)
    }
    costs = Costs.equal(pipeline.num_chunks)
    assert simulate(schedule, costs, capacity=pipeline.largest_group) is not None


@pytest.mark.parametrize(
    ("shape", "nodes", "chunks", "name", "slow"),
    [
        ((1, 1), (4, 4), 1, "1f1b", set()),
        ((1, 1), (1, 1), 1, "eager-1f1b", {0}),
        ((1, 1, 1), (2, 4), 1, "1f1b", set()),
        ((1, 1, 1), (2, 1), 1, "eager-1f1b", {1}),
        ((1, 1, 1), (2, 2, 2), 1, "eager-1f1b", {0, 1}),
        ((1, 1), (4,), 2, "interleaved", set()),
        ((1,), (4,), 1, "1f1b", set()),
    ],
)
def test_auto_takes_what_suits_the_topology(
    shape: tuple[int, ...], nodes: tuple[int, ...], chunks: int, name: str, slow: set[int]
) -> None:
    pipeline = Pipeline.of(Topology(Shape(shape), nodes, chunks), "auto")
    assert (pipeline.schedule, pipeline.slow_links) == (name, slow)


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_a_schedule_that_is_asked_for_is_taken(name: ScheduleName) -> None:
    pipeline = Pipeline.of(Topology(Shape((1, 1)), (2,)), name)
    assert pipeline.schedule == name
    assert pipeline.slow_links == ({0} if name == "eager-1f1b" else set())
