from __future__ import annotations

import json
from typing import Any

import pytest

from bundlerun.launcher.options.step_range import StepRange, profile_steps
from bundlerun.launcher.report.traces import RankTrace, timeline
from bundlerun.launcher.run_folder.measured import MeasuredRank, Span


def measured(node: str, stage: int, wall_s: float, begin_s: float) -> MeasuredRank:
    spans = (
        Span("forward", begin_s, begin_s + 1.0, "F0"),
        Span("exchange", begin_s + 1.0, begin_s + 2.0),
        Span("exchange", begin_s + 2.0, begin_s + 3.0),
    )
    return MeasuredRank(
        step=9, round="r", node=node, boot=node, rank=stage, bundle=0, stage=stage, replica=0,
        chunks=1, wall_s=wall_s, host_bytes=0, device_bytes=0, spans=spans,
    )  # fmt: skip


def trace(pid: int, wall_s: float) -> dict[str, Any]:
    """One operation at that time, and a kernel of GPU 0 that it has launched."""
    base = 1_000_000
    at = (wall_s - base) * 1e6
    when = {"ts": at, "dur": 5}
    return {
        "baseTimeNanoseconds": base * 1_000_000_000,
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": pid, "ts": 0, "args": {"name": "python"}},
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": pid, "tid": 7, **when},
            {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, **when},
            {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 3, "pid": pid, "tid": 7, "ts": at},
            {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "ts": at},
        ],
    }


def test_ranks_of_two_machines_are_on_one_clock_and_named() -> None:
    # The wall clock of node1 is 50 seconds late; the sums say it cannot be so.
    first = RankTrace([measured("node0", 0, 2e6, 100.0)], trace(11, 2e6 + 100.5))
    other = RankTrace([measured("node1", 0, 2e6 - 50, 100.0)], trace(11, 2e6 - 50 + 100.5))
    made = timeline([first, other])

    events = made["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(names.values()) == [
        "node0 stage 0 bundle 0",
        "node0 stage 0 bundle 0 GPU",
        "node1 stage 0 bundle 0",
        "node1 stage 0 bundle 0 GPU",
    ]
    by_name = {(names[e["pid"]], e["name"]): e["ts"] for e in events if e["ph"] == "X"}
    begins = []
    for node in ("node0", "node1"):
        begins.append(by_name[f"{node} stage 0 bundle 0", "forward F0"])
        # Half a second after the forward began.
        middle = pytest.approx(begins[-1] + 5e5, abs=1)
        assert by_name[f"{node} stage 0 bundle 0", "aten::mm"] == middle
        assert by_name[f"{node} stage 0 bundle 0 GPU", "gemm"] == middle
    assert min(begins) == pytest.approx(0)
    assert abs(begins[1] - begins[0]) <= 2e6
    ids = [e["id"] for e in events if e["ph"] == "s"]
    assert len(set(ids)) == 2
    assert "PyTorch Profiler (0)" not in {e["name"] for e in events}
    json.dumps(made, allow_nan=False)


def test_steps_are_counted_as_in_the_log() -> None:
    steps = StepRange.parse("10:13")
    assert (steps.first, steps.count, str(steps)) == (10, 4, "10:13")
    assert [step for step in range(20) if steps.begins_at(step, num_done=step)] == [9]
    few = StepRange.parse("3")
    assert [step for step in range(100, 110) if few.begins_at(step, num_done=step - 100)] == [102]
    assert profile_steps("") == ""


@pytest.mark.parametrize("text", ["0", "0:3", "13:10", "a", "1:2:3", "-1", "1:101", "101"])
def test_steps_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        StepRange.parse(text)
