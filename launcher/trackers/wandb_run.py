"""Weights & Biases: one row of its history per line of ours, numbered; its own process writes them.

W&B cannot take rows back; the number of a row says which ones it has after a death.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from bundlerun.launcher.trackers.event_files import wandb_records
from bundlerun.launcher.trackers.interface import Ending, Row, TrackerRun

PROJECT = "bundlerun"
_LONGEST_END_S = 20.0


class WandbRun:
    """A run of W&B; what WANDB_MODE, WANDB_PROJECT and its other variables say holds.

    Args:
        run: which one.

    Raises:
        Exception: W&B does not answer, or there is no key for it.
    """

    keeps_told = False  # a process of W&B writes them some time later

    def __init__(self, run: TrackerRun) -> None:
        # What our last process has left is written by the other one before we look.
        if run.last_pid not in (0, os.getpid()):
            _await_end_of(run.last_pid)
        if wandb.run is not None:  # of a failure in this process
            wandb.teardown()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            group=run.group,
            id=run.key,
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            resume="allow",
            config=dict(run.config),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="global_step")
        # Only the server knows what has reached it; offline the files do.
        if self._run.offline:
            self._num_rows = _num_rows(Path(self._run.settings.wandb_dir), run.key)
        else:
            self._num_rows = self._run.step

    def lacking(self, rows: Sequence[Row]) -> list[Row]:
        """See `Tracker`."""
        return [row for row in rows if row.number >= self._num_rows]

    def tell(self, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        for row in rows:
            values = {**row.scalars, "global_step": row.step, "_timestamp": row.time}
            self._run.log(values, step=row.number, commit=True)

    def close(self, ending: Ending) -> None:
        """See `Tracker`."""
        if ending == "replaced":
            self._run.tags = (*(self._run.tags or ()), "replaced")
        self._run.finish()


def _num_rows(folder: Path, key: str) -> int:
    """Rows in the files of all processes that had the run open without a network."""
    last = -1
    for path in folder.glob(f"offline-run-*/run-{key}.wandb"):
        for data in wandb_records(path):
            record = Record.FromString(data)
            if record.HasField("history"):
                last = max(last, _number(record))
    return last + 1


def _number(record: Record) -> int:
    if record.history.HasField("step"):
        return int(record.history.step.num)
    found = [json.loads(i.value_json) for i in record.history.item if i.key == "_step"]
    return int(found[0]) if found else -1


def _await_end_of(pid: int) -> None:
    """Returns when no process of W&B is left that a dead one of ours has started.

    It ends by itself soon after; one that does not within the limit is ended.
    """
    for core in psutil.process_iter(["name", "cmdline"]):
        words = core.info["cmdline"] or []
        if core.info["name"] == "wandb-core" and f"--pid {pid}" in " ".join(words):
            try:
                core.wait(_LONGEST_END_S)
            except psutil.TimeoutExpired:
                core.kill()
                core.wait(_LONGEST_END_S)
