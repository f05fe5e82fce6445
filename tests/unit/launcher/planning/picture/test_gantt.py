"""A step as lanes: as long as the forecast says, with passes as long as the profile says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from bundlerun.launcher.choices import ScheduleName, SchemeName
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.timeline import Costs, simulate
from bundlerun.launcher.planning.candidate import Candidate, Request, Term
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.forecast import foresee, foreseen_step
from bundlerun.launcher.planning.model_costs import UpdateCosts
from bundlerun.launcher.planning.picture.gantt import (
    MOST_MICROBATCHES,
    Bar,
    Gantt,
    Kind,
    Role,
    Source,
    Who,
    by_schedule,
    lanes_of,
)
from tests.unit.launcher.planning.models import GBIT, MB, nodes, profile_of

PROFILE = profile_of(
    [0.01, 0.02, 0.01, 0.03],
    trained_bytes=2 * MB,
    message_bytes=MB,
    update=UpdateCosts(update_s_per_byte=1e-9, step_s=0.004),
)
PAIR = nodes(2, 4, bytes_per_s=GBIT, latency_s=1e-4)
SPREAD = nodes(8, 1, bytes_per_s=GBIT, latency_s=1e-4)
ON_CPUS = nodes(2, 4, bytes_per_s=10 * GBIT, host=Host.usual(3))
UNLIKE = Cluster(
    kinds=(
        NodeKind(name="fast", count=12_000, devices=8),
        NodeKind(name="slow", count=500, devices=4, speed=0.5),
    ),
    between=Link(bytes_per_s=100 * GBIT),
)


def plan(
    *widths: int,
    schedule: ScheduleName = "1f1b",
    sync: SchemeName = "local-master",
    chunks: int = 1,
) -> Candidate:
    number = len(widths) * chunks
    cuts = tuple(i * 4 // number for i in range(number - 1))
    return Candidate(
        shape=Shape(widths), cuts=cuts, schedule=schedule, sync=sync, samples=8, chunks=chunks
    )


def request(microbatches: int) -> Request:
    return Request(batch_size=8 * microbatches)


def check_lanes(gantt: Gantt) -> None:
    """Nothing lasts less than nothing, nothing overlaps, and the last thing ends the step."""
    for lane in gantt.lanes:
        assert all(bar.length >= 0 for bar in lane.bars)
        assert all(one.end <= other.begin for one, other in pairwise(lane.bars))
    assert max(bar.end for lane in gantt.lanes for bar in lane.bars) == pytest.approx(gantt.step)


CASES = {
    "one stage": (plan(1), PAIR),
    "two on a node": (plan(1, 1), PAIR),
    "four, 1f1b": (plan(1, 1, 1, 1), PAIR),
    "four on four nodes": (plan(1, 1, 1, 1, schedule="eager-1f1b"), SPREAD),
    "zero-bubble": (plan(1, 1, 1, 1, schedule="zero-bubble"), PAIR),
    "interleaved": (plan(1, 1, schedule="interleaved", chunks=2), PAIR),
    "wide": (plan(3, 1, sync="sharded"), PAIR),
    "shared cores": (plan(1, 1), ON_CPUS),
    "flat": (plan(1, 1, schedule="gpipe", sync="flat"), PAIR),
    "unlike": (plan(1, 1), UNLIKE),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_as_long_as_the_forecast_and_has_all_of_its_parts(case: str) -> None:
    candidate, cluster = CASES[case]
    # A bundle does few enough that all of them are looked at.
    num_bundles = sum(kind.count * (kind.devices // candidate.shape.size) for kind in cluster.kinds)
    wanted = request(6 * (num_bundles or 2))
    gantt = foreseen_step(PROFILE, candidate, cluster, wanted)
    forecast = foresee(PROFILE, candidate, cluster, wanted)
    assert gantt.source is Source.FORECAST
    assert gantt.num_left_out == 0
    assert gantt.step == pytest.approx(forecast.step_s)
    check_lanes(gantt)
    own = {lane.who: lane.bars for lane in gantt.lanes if lane.role is Role.PASSES}
    kinds = {
        kind: sum(b.length for b in bars if b.kind is kind)
        for bars in own.values()
        for kind in Kind
    }
    assert kinds[Kind.OTHER] == pytest.approx(0.004)
    # A rank of each stage is there, and the one that works the most is foreseen as such.
    assert {who.stage for who in own} == set(range(candidate.shape.num_stages))
    passes = (Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT)
    busiest = max(sum(b.length for b in bars if b.kind in passes) for bars in own.values())
    assert busiest == pytest.approx(forecast.terms[Term.COMPUTE], rel=0.05)
    if cluster is not ON_CPUS:
        assert busiest == pytest.approx(forecast.terms[Term.COMPUTE])
    sums = [bar for lane in gantt.lanes if lane.role is Role.SUMS for bar in lane.bars]
    assert {Kind.EXCHANGE} <= {bar.kind for bar in sums} or cluster is UNLIKE


def test_passes_of_a_stage_take_what_its_pieces_take() -> None:
    candidate = plan(1, 1, 1, 1, schedule="zero-bubble")
    gantt = foreseen_step(PROFILE, candidate, nodes(1, 4), request(5))
    for who, forward_s in zip(gantt.ranks, [0.01, 0.02, 0.01, 0.03], strict=True):
        (lane,) = (one for one in gantt.lanes if one.who == who and one.role is Role.PASSES)
        for kind, times in ((Kind.FORWARD, 1), (Kind.BACKWARD, 1 if who.stage else 2)):
            found = sorted(bar.microbatch for bar in lane.bars if bar.kind is kind)
            assert found == list(range(5))
            spent_s = sum(bar.length for bar in lane.bars if bar.kind is kind)
            assert spent_s == pytest.approx(5 * times * forward_s)
        weights = [bar for bar in lane.bars if bar.kind is Kind.WEIGHT]
        assert len(weights) == (5 if who.stage else 0)


def test_a_message_leaves_when_its_pass_has_ended_and_comes_before_the_next_begins() -> None:
    gantt = foreseen_step(PROFILE, plan(1, 1, 1, 1), SPREAD, request(8))
    bars = {
        (lane.who.stage, bar.kind, bar.microbatch): bar
        for lane in gantt.lanes
        if lane.role is Role.PASSES
        for bar in lane.bars
    }
    messages = [
        (lane.who.stage, bar)
        for lane in gantt.lanes
        if lane.role is Role.MESSAGES and lane.who.bundle == 0
        for bar in lane.bars
    ]
    # Two forth and two back between each two of four stages, of four micro-batches.
    assert len(messages) == 3 * 2 * 4
    for stage, bar in messages:
        is_forth = bar.name.startswith("activation")
        kind, there = (Kind.FORWARD, stage + 1) if is_forth else (Kind.BACKWARD, stage - 1)
        assert bar.name.endswith(f"to stage {there}")
        assert bar.num_bytes == MB
        assert bars[stage, kind, bar.microbatch].end <= bar.begin + 1e-9
        assert bar.end <= bars[there, kind, bar.microbatch].begin + 1e-9
        assert bar.length >= MB / GBIT


def test_alike_nodes_are_one_lane_and_unlike_ones_have_their_own() -> None:
    gantt = foreseen_step(PROFILE, plan(1, 1), UNLIKE, request(6 * 49_000 + 5), most_ranks=64)
    bundles = {who.bundle: who for who in gantt.ranks if who.stage == 0}
    assert len(gantt.ranks) == 2 * len(bundles)
    # Some of the fast ones have a micro-batch more than the others.
    counts = {
        where: [w.count for w in bundles.values() if w.where == where] for where in ("fast", "slow")
    }
    assert {where: sum(each) for where, each in counts.items()} == {"fast": 48_000, "slow": 1000}
    assert len(counts["fast"]) == 2
    assert len(foreseen_step(PROFILE, plan(1, 1), UNLIKE, request(6), most_ranks=1).ranks) == 2


def test_of_very_many_micro_batches_some_are_shown() -> None:
    gantt = foreseen_step(PROFILE, plan(1, 1), nodes(1, 2), request(5000))
    assert gantt.num_microbatches == MOST_MICROBATCHES
    assert gantt.num_left_out == 5000 - MOST_MICROBATCHES
    check_lanes(gantt)


def test_data_that_come_late_stand_before_the_first_forward() -> None:
    late = replace(PROFILE, update=UpdateCosts(load_s=0.05))
    kind = NodeKind(name="a", count=1, devices=2, loaders=1)
    cluster = Cluster(kinds=(kind,), between=Link(bytes_per_s=float("inf")))
    gantt = foreseen_step(late, plan(1, 1), cluster, request(4))
    assert gantt.step == pytest.approx(4 * 8 * 0.05)
    assert gantt.step == pytest.approx(foresee(late, plan(1, 1), cluster, request(4)).step_s)
    first = gantt.lanes[0].bars[0]
    assert (first.name, gantt.lanes[0].bars[1].begin) == ("waits for data", first.end)
    check_lanes(gantt)


def test_without_a_profile_it_is_the_timeline_of_the_schedule() -> None:
    pipeline = Pipeline(shape=Shape((2, 1)), schedule="zero-bubble")
    gantt = by_schedule(pipeline, 6)
    timeline = simulate(pipeline.bundle(6), Costs.equal(2))
    assert timeline is not None
    assert gantt.step == timeline.duration
    assert not gantt.is_in_seconds
    assert [who.name for who in gantt.ranks] == ["stage 0.0", "stage 0.1", "stage 1"]
    for lane in gantt.lanes:
        spans = timeline.spans[lane.who.stage, lane.who.replica]
        assert [(b.label, b.begin, b.end) for b in lane.bars] == [
            (str(span.action), span.start, span.end) for span in spans
        ]
    check_lanes(gantt)
    assert by_schedule(pipeline, 1000).num_left_out == 1000 - MOST_MICROBATCHES


def test_bars_that_overlap_are_in_lanes_side_by_side() -> None:
    who = Who(bundle=0, stage=0)
    bars = [Bar(0, 2, Kind.MESSAGE), Bar(1, 3, Kind.MESSAGE), Bar(2, 4, Kind.MESSAGE)]
    first, second = lanes_of(who, Role.MESSAGES, reversed(bars))
    assert (first.bars, second.bars) == ((bars[0], bars[2]), (bars[1],))
    assert list(lanes_of(who, Role.SUMS, [])) == []
