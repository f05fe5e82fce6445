from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.options.step_range import StepRange
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.report.profiling import Profiling


@pytest.fixture
def session() -> Any:
    topology = Topology(Shape((1,)), (1,))
    return SimpleNamespace(
        topology=topology,
        place=topology.places[0],
        device=torch.device("cpu"),
        token="t",
        arrival=SimpleNamespace(node_name="node0"),
    )


def test_the_steps_that_are_asked_for_are_in_a_trace_and_in_the_timeline(
    tmp_path: Path, session: Any
) -> None:
    paths, meters = RunPaths(tmp_path), Meters()
    profiling = Profiling(paths, session, meters, StepRange(3, 2), is_teller=True)
    for step in range(6):
        profiling.begin(step)
        assert (meters.recording is not None) == (step in (2, 3))
        with meters.phase("forward"):
            torch.ones(3, step + 1).cos()
        profiling.end()
    profiling.close()

    file = paths.timeline("steps-000000003-000000004")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    (name,) = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert name == "node0 stage 0 bundle 0"
    ours = [e for e in events if e.get("cat") == "bundlerun"]
    assert [(e["name"], e["args"]["step"]) for e in ours] == [("forward", 3), ("forward", 4)]
    operations = [e for e in events if e["name"] == "aten::cos"]
    assert len(operations) == 2
    # The operation is inside the phase, though one has the wall clock and one has the other.
    for phase, operation in zip(ours, operations, strict=True):
        assert phase["ts"] - 5e3 < operation["ts"] < phase["ts"] + phase["dur"] + 5e3
    (trace,) = paths.rank_traces("steps-000000003-000000004")
    assert b'"traceEvents"' in gzip.decompress(trace.read_bytes())


def test_a_run_that_ends_earlier_keeps_what_there_is(tmp_path: Path, session: Any) -> None:
    paths, meters = RunPaths(tmp_path), Meters()
    profiling = Profiling(paths, session, meters, StepRange(0, 50), is_teller=False)
    for step in range(7, 11):
        profiling.begin(step)
        with meters.phase("forward"):
            pass
        profiling.end()
    profiling.close()
    assert len(paths.rank_traces("steps-000000010-000000059")) == 1
