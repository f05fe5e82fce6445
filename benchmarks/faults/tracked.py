"""What trackers have of a run, asked of each by its own library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.follower import all_rows

Lines = list[tuple[str, int, float]]
"""Names, steps, values."""
_CLOSE = 1e-6
"""TensorBoard has numbers of 4 bytes."""


def wrong_in(name: str, paths: RunPaths) -> list[str]:
    """What of the history the tracker does not have once, and what else it has."""
    expected = sorted((n, r.step, v) for r in all_rows(paths) for n, v in r.scalars.items())
    shown = sorted(SHOWN[name](paths))
    if [line[:2] for line in shown] != [line[:2] for line in expected]:
        extra, missing = set(shown) - set(expected), set(expected) - set(shown)
        return [
            f"{name} has {len(shown)} numbers of {len(expected)}: besides {sorted(extra)[:3]}, "
            f"without {sorted(missing)[:3]}, or some twice"
        ]
    pairs = zip(shown, expected, strict=True)
    far = [a for a, b in pairs if abs(a[2] - b[2]) > _CLOSE * abs(b[2])]
    return [f"{name} has other values, as {far[0]}"] if far else []


def _of_tensorboard(paths: RunPaths) -> Lines:
    """TensorBoard hides what was taken back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(paths.tensorboard), size_guidance={"scalars": 0}).Reload()
    return [(t, e.step, e.value) for t in events.Tags()["scalars"] for e in events.Scalars(t)]


def _of_wandb(paths: RunPaths) -> Lines:
    """The newest run, of all files of its processes, as `wandb sync` sends them."""
    from wandb.proto.wandb_internal_pb2 import Record

    from bundlerun.launcher.trackers.event_files import wandb_records

    folder = paths.tracker_files("wandb") / "wandb"
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    key = max(int(path.stem.rpartition("-")[2]) for path in files)
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


def _of_mlflow(paths: RunPaths) -> Lines:
    """The run that no other has replaced."""
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=paths.tracker_files("mlflow").absolute().as_uri())
    found = client.get_experiment_by_name("bundlerun")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    (run,) = (each for each in runs if each.data.tags.get("bundlerun_replaced") is None)
    return [
        (name, m.step, m.value)
        for name in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, name)
    ]


def _of_trackio(paths: RunPaths) -> Lines:
    """The only run there is."""
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


SHOWN: Mapping[str, Callable[[RunPaths], Lines]] = {
    "tensorboard": _of_tensorboard,
    "wandb": _of_wandb,
    "mlflow": _of_mlflow,
    "trackio": _of_trackio,
}
