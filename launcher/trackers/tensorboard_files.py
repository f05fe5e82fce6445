"""TensorBoard: event files, which take steps back by TensorBoard's own mark of a restart."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from bundlerun.launcher.trackers.event_files import events_of
from bundlerun.launcher.trackers.interface import Ending, Row, TrackerRun

_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\..*\.bundlerun-(?P<part>\w+)")


class TensorBoardFiles:
    """Writes a file per process that had the run open; TensorBoard reads them in that order.

    Args:
        run: the run; all its runs are in one folder, as TensorBoard hides what is taken back.

    Raises:
        OSError: the folder cannot be written.
    """

    keeps_told = True

    def __init__(self, run: TrackerRun) -> None:
        self._folder = run.folder
        self._files = sorted(run.folder.glob(f"events.out.tfevents.*.bundlerun-{run.key}"))
        # TensorBoard reads files by name: this one has to come after all others.
        stamp = max([int(time.time()), *(_stamp(path) + 1 for path in self._files)])
        host = re.sub(r"[^\w-]", "-", socket.gethostname())
        self._path = run.folder / (
            f"events.out.tfevents.{stamp:010d}.{host}.{os.getpid()}.bundlerun-{run.key}"
        )
        self._file = self._path.open("xb")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._sync()

    def lacking(self, rows: Sequence[Row]) -> list[Row]:
        """See `Tracker`."""
        has: set[tuple[str, int]] = set()
        for path in self._files:
            for event in events_of(path):
                if event.HasField("session_log"):
                    has = {pair for pair in has if pair[1] < event.step}
                has |= {(value.tag, event.step) for value in event.summary.value}
        return without(rows, has)

    def tell(self, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        for row in rows:
            values = [
                Summary.Value(tag=name, simple_value=value) for name, value in row.scalars.items()
            ]
            self._write(Event(wall_time=row.time, step=row.step, summary=Summary(value=values)))
        self._sync()

    def take_back(self, step: int) -> None:
        """See `TakesBack`."""
        # What a SummaryWriter writes for `purge_step`.
        mark = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=step, session_log=mark))
        self._sync()

    def close(self, ending: Ending) -> None:
        """See `Tracker`."""
        self._file.close()

    def _write(self, event: Any) -> None:  # noqa: ANN401 (made by protobuf at run time)
        self._writer.write(event.SerializeToString())

    def _sync(self) -> None:
        # Another process may be looking, as at the history.
        self._file.flush()
        os.fsync(self._file.fileno())


def without(rows: Sequence[Row], has: set[tuple[str, int]]) -> list[Row]:
    """The rows with what is not among names and steps that a tracker `has`."""
    result = []
    for row in rows:
        left = {name: v for name, v in row.scalars.items() if (name, row.step) not in has}
        if left:
            result.append(Row(number=row.number, step=row.step, time=row.time, scalars=left))
    return result


def _stamp(path: Path) -> int:
    match = _FILE.fullmatch(path.name)
    return int(match[1]) if match else 0
