"""Each tracker with its own library, where that is installed; at the end it is asked what it has.

A process of the follower is killed between rows, as a death leaves it, and steps are done again.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.faults.tracked import wrong_in
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.started import StartedTrackers
from bundlerun.workers.report.metrics import MetricsWriter
from tests.unit.launcher.trackers.test_follower import write_steps

MODULES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio.sqlite_storage",
}


@pytest.fixture(params=MODULES)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(
        MODULES[request.param].partition(".")[0],
        reason=f"the extra bundlerun[{request.param}] is not installed",
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(request.param)


@pytest.mark.timeout(600)
def test_each_step_is_there_once_after_kills_and_steps_done_again(
    name: str, tmp_path: Path
) -> None:
    paths = RunPaths(tmp_path / "a run")
    rounds = int(os.environ.get("BUNDLERUN_TEST_TRACKER_KILLS", "1"))
    step = 0
    with MetricsWriter(paths) as writer:
        for number in range(rounds):
            started = StartedTrackers(paths, [name])
            write_steps(writer, step, step + 12)
            step += 12
            await_rows(paths, name)
            # As when a machine dies: nothing is told any more.
            for process in started.processes:
                process.send_signal(signal.SIGKILL)
                process.wait()
            if number % 3 == 0:
                writer.write("start")
                step -= 2
                writer.forget(step, with_ends=False)
        started = StartedTrackers(paths, [name])
        write_steps(writer, step, step + 2)
        writer.write("end")
    started.close(limit_s=300)

    assert wrong_in(name, paths) == []


def await_rows(paths: RunPaths, name: str) -> None:
    ends = time.monotonic() + 120
    while b'"begin"' not in read(paths.tracker_journal(name)):
        assert time.monotonic() < ends, read(paths.tracker_log(name)).decode()
        time.sleep(0.05)


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
