"""Each tracker with its own library, where that is installed; at the end it is asked what it has.

A process of the follower is killed between rows, as a death leaves it, and steps are done again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.follower import all_rows
from bundlerun.launcher.trackers.started import StartedTrackers
from bundlerun.workers.report.metrics import MetricsWriter
from tests.unit.launcher.trackers.test_follower import write_steps

Lines = list[tuple[str, int, float]]
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

    expected = sorted((n, r.step, v) for r in all_rows(paths) for n, v in r.scalars.items())
    shown = sorted(SHOWN[name](paths))
    assert [line[:2] for line in shown] == [line[:2] for line in expected]
    assert [line[2] for line in shown] == pytest.approx([line[2] for line in expected])


def await_rows(paths: RunPaths, name: str) -> None:
    ends = time.monotonic() + 120
    while b'"begin"' not in read(paths.tracker_journal(name)):
        assert time.monotonic() < ends, read(paths.tracker_log(name)).decode()
        time.sleep(0.05)


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def of_tensorboard(paths: RunPaths) -> Lines:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(paths.tensorboard), size_guidance={"scalars": 0}).Reload()
    return [(t, e.step, e.value) for t in events.Tags()["scalars"] for e in events.Scalars(t)]


def of_wandb(paths: RunPaths) -> Lines:
    """The newest run, of all files of its processes, as `wandb sync` sends them."""
    from wandb.proto.wandb_internal_pb2 import Record

    from bundlerun.launcher.trackers.event_files import wandb_records

    folder = paths.tracker_files("wandb") / "wandb"
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    key = max(path.stem.rpartition("-")[2] for path in files)
    lines: Lines = []
    for path in files:
        for record in map(Record.FromString, wandb_records(path)):
            if path.stem.endswith(f"-{key}") and record.HasField("history"):
                row = {
                    "".join(i.nested_key) or i.key: json.loads(i.value_json)
                    for i in record.history.item
                }
                step = row["global_step"]
                lines += [(n, step, v) for n, v in row.items() if "/" in n]
    return lines


def of_mlflow(paths: RunPaths) -> Lines:
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=paths.tracker_files("mlflow").absolute().as_uri())
    found = client.get_experiment_by_name("bundlerun")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    (run,) = (each for each in runs if each.data.tags.get("bundlerun_replaced") is None)
    assert run.info.status == "FINISHED"
    return [
        (name, m.step, m.value)
        for name in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, name)
    ]


def of_trackio(paths: RunPaths) -> Lines:
    # In another process: the library looks at TRACKIO_DIR once.
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "runs = [r for r in S.get_run_records('bundlerun')]\n"
        "assert len(runs) == 1, runs\n"
        "print(json.dumps(S.get_logs('bundlerun', runs[0]['name'], run_id=runs[0]['id'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return [
        (name, row["step"], value)
        for row in json.loads(done.stdout)
        for name, value in row.items()
        if "/" in name
    ]


SHOWN = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}
