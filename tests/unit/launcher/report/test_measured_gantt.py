"""A measured step as a Gantt chart: every span has its bar, on one clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.planning.picture.gantt import Kind, Role, Source
from bundlerun.launcher.report.measured_gantt import as_measured, measured_gantt
from bundlerun.launcher.run_folder.measured import MeasuredRank, Span, read_measured
from tests.unit.launcher.report.made_run import make_run


def rank(stage: int, *spans: Span) -> MeasuredRank:
    return MeasuredRank(
        step=4, round="r", node="n", boot="b", rank=stage, bundle=0, stage=stage, replica=0,
        chunks=1, wall_s=0.0, host_bytes=0, device_bytes=0, spans=spans,
    )  # fmt: skip


def test_a_span_is_a_bar_and_what_goes_on_behind_has_lanes_of_its_own() -> None:
    front = rank(
        0,
        Span("data", 9.9, 10.0), Span("forward", 10.0, 11.0, "F0"), Span("send", 11.0, 11.1, "F0"),
        Span("receive", 11.1, 12.0, "B0"), Span("backward", 12.0, 14.0, "B0"),
        Span("exchange", 13.0, 14.5), Span("collect", 13.5, 13.6), Span("snapshot", 14.0, 15.0),
        Span("optimizer", 14.5, 14.7), Span("forward", 14.7, 15.5, "F0", 1),
    )  # fmt: skip
    rear = rank(
        1, Span("forward", 11.2, 11.5, "F0"), Span("backward", 11.5, 11.7, "B0"),
        Span("backward", 11.7, 11.9, "W0"),
    )  # fmt: skip
    gantt = measured_gantt([front, rear])
    assert (gantt.source, gantt.step_number, gantt.num_microbatches) == (Source.MEASURED, 4, 1)
    # From the first stage's begin to the last end, but for what is of the next step.
    assert gantt.step == pytest.approx(15.0 - 9.9)
    assert (gantt.begin, gantt.end) == (pytest.approx(0.0), pytest.approx(15.5 - 9.9))
    assert [lane.role for lane in gantt.lanes] == [
        Role.PASSES, Role.SUMS, Role.SUMS, Role.BEHIND, Role.PASSES,
    ]  # fmt: skip
    own = gantt.lanes[0].bars
    assert [(bar.kind, bar.words) for bar in own] == [
        (Kind.OTHER, "data"), (Kind.FORWARD, "forward F0"),
        (Kind.HANDOVER, "send of micro-batch 0"), (Kind.WAIT, "receive of micro-batch 0"),
        (Kind.BACKWARD, "backward B0"), (Kind.UPDATE, "optimizer"), (Kind.FORWARD, "forward F0"),
    ]  # fmt: skip
    assert [bar.is_ahead for bar in own] == [False] * 6 + [True]
    assert [bar.label for bar in gantt.lanes[-1].bars] == ["F0", "B0", "W0"]


def test_ranks_of_a_run_are_there_and_so_is_the_step_of_their_passes_alone(tmp_path: Path) -> None:
    ranks = list(read_measured(make_run(tmp_path / "run")))[-1]
    gantt = measured_gantt(ranks)
    assert [(who.where, who.bundle, who.name) for who in gantt.ranks] == [
        ("node-a", 0, "stage 0"), ("node-a", 0, "stage 1"),
        ("node-b", 1, "stage 0"), ("node-b", 1, "stage 1"),
    ]  # fmt: skip
    assert gantt.step == pytest.approx(0.6)
    alone = as_measured(ranks)
    assert alone is not None
    assert alone.step > 0
    assert {lane.role for lane in alone.lanes} == {Role.PASSES}
    assert as_measured(ranks[1:]) is None
    assert {who.bundle for who in measured_gantt(ranks, most_ranks=2).ranks} == {0}
