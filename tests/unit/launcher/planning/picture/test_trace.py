"""What Perfetto is given is valid, and says what the Gantt chart says."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.candidate import Candidate, Request
from bundlerun.launcher.planning.forecast import foreseen_step
from bundlerun.launcher.planning.picture.gantt import Gantt, by_schedule
from bundlerun.launcher.planning.picture.trace import trace
from tests.unit.launcher.planning.models import GBIT, MB, nodes, profile_of


def lanes_in(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """The events of each lane, after a check of all."""
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        assert event["ph"] in ("M", "X")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["name"]
            found.setdefault((event["pid"], event["tid"]), []).append(event)
    assert found.keys() == named
    assert {pid for pid, _ in found} == processes
    for lane in found.values():
        assert all(one["ts"] + one["dur"] <= other["ts"] + 1e-3 for one, other in pairwise(lane))
    return found


def foreseen() -> Gantt:
    candidate = Candidate(
        shape=Shape((1, 1)), cuts=(1,), schedule="1f1b", sync="local-master", samples=8
    )
    profile = profile_of([0.01] * 4, trained_bytes=MB, message_bytes=MB)
    cluster = nodes(4, 1, bytes_per_s=GBIT)
    return foreseen_step(profile, candidate, cluster, Request(batch_size=64))


def test_every_bar_is_an_event_at_its_time() -> None:
    gantt = foreseen()
    found = trace([gantt])
    lanes = lanes_in(json.loads(json.dumps(found))["traceEvents"])
    assert len(lanes) == len(gantt.lanes)
    for lane, events in zip(gantt.lanes, lanes.values(), strict=True):
        assert [event["ts"] for event in events] == pytest.approx(
            [1e6 * (bar.begin - gantt.begin) for bar in lane.bars]
        )
        assert [event["dur"] for event in events] == pytest.approx(
            [1e6 * bar.length for bar in lane.bars]
        )
    ends = [event["ts"] + event["dur"] for events in lanes.values() for event in events]
    assert max(ends) == pytest.approx(1e6 * (gantt.step - gantt.begin))
    sent = [e for events in lanes.values() for e in events if e["cat"] == "message"]
    assert {e["args"]["bytes"] for e in sent} == {MB}
    assert "activation to stage 1 of micro-batch 0" in {e["name"] for e in sent}


def test_two_charts_are_two_groups_of_processes() -> None:
    events = trace([foreseen(), by_schedule(Pipeline(shape=Shape((1, 1))), 4)])["traceEvents"]
    lanes_in(events)
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names[0].startswith("forecast: a stage 0")
    assert names[-1] == "schedule: stage 1 (1 ms: a forward)"
    assert len(names) == len(set(names))
    durations = {e["dur"] for e in events if e["name"] == "forward F0" and e["pid"] == len(names)}
    assert durations == {1000.0}
