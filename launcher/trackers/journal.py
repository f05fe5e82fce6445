"""What a tracker was told, on disk: written before it is told, and again once it has it.

    {"run": "k3x9...", "part": 0, "pid": 17}           a run of the tracker was begun
    {"pid": 18}                                         another process goes on with it
    {"begin": 0, "end": 310, "first": 0, "count": 2, ...}  these bytes of the history are being told
    {"told": 310}                                       and are told, whatever dies next
    {"kept": 1, "cut": null}                            of the batches the first one is left

A batch holds a digest of its bytes. The history is cut where steps are done again; then a batch is
not what the history has there, and what it told is to be taken back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from bundlerun.launcher.run_folder.history import rows_of
from bundlerun.launcher.trackers.interface import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some lines of the history that are told together.

    Args:
        begin: of their bytes in the history.
        end: of them.
        first: the number of their first row.
        count: rows.
        step: the smallest step of the rows.
        high: the largest.
        digest: of the bytes.
    """

    begin: int
    end: int
    first: int
    count: int
    step: int
    high: int
    digest: str

    @classmethod
    def of(cls, begin: int, data: bytes, rows: list[Row]) -> Self:
        """That of `data`, which has `rows`, one at least."""
        steps = [row.step for row in rows]
        return cls(
            begin=begin,
            end=begin + len(data),
            first=rows[0].number,
            count=len(rows),
            step=min(steps),
            high=max(steps),
            digest=digest_of(data),
        )


def digest_of(data: bytes) -> str:
    """Tells the lines of a history from others; they hold times, so few letters do."""
    return hashlib.sha256(data).hexdigest()[:16]


class Journal:
    """Reads it and adds to it; one process at a time.

    Args:
        path: of the file; made if it is not there.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.run = ""
        self.part = 0
        self.last_pid = 0
        self.batches: list[Batch] = []
        self.settled = 0
        """Of the batches, that the tracker has whatever dies."""
        self._file = _opened(path)
        for entry in rows_of(self._file.read()):
            self._apply(entry)

    @property
    def end(self) -> int:
        """Where in the history the next batch begins."""
        return self.batches[-1].end if self.batches else 0

    @property
    def num_rows(self) -> int:
        """Rows that the tracker's run has, or is being told."""
        return self.batches[-1].first + self.batches[-1].count if self.batches else 0

    def begin(self, run: str, part: int) -> None:
        """A run of the tracker begins, which has nothing yet."""
        self._add({"run": run, "part": part, "pid": os.getpid()})

    def go_on(self) -> None:
        """Another process goes on with it: this one."""
        self._add({"pid": os.getpid()})

    def intend(self, batch: Batch) -> None:
        """The tracker is about to be told a batch."""
        self._add(asdict(batch))

    def settle(self) -> None:
        """The tracker has all batches, whatever dies next."""
        if self.settled < len(self.batches):
            self._add({"told": self.end})

    def keep(self, count: int, cut: Batch | None) -> None:
        """The tracker has only the first batches, and `cut` where of one more a part is left."""
        self._add({"kept": count, "cut": asdict(cut) if cut else None})

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _add(self, entry: Mapping[str, object]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        # Before the tracker is told: a machine that dies must not forget it.
        os.fsync(self._file.fileno())
        self._apply(entry)

    def _apply(self, entry: Mapping[str, Any]) -> None:
        self.last_pid = entry.get("pid", self.last_pid)
        if "run" in entry:
            self.run, self.part = entry["run"], entry["part"]
            self.batches, self.settled = [], 0
        elif "begin" in entry:
            self.batches.append(Batch(**entry))
        elif "told" in entry:
            self.settled = len(self.batches)
        elif "kept" in entry:
            del self.batches[entry["kept"] :]
            if entry["cut"]:
                self.batches.append(Batch(**entry["cut"]))
            self.settled = min(self.settled, len(self.batches))


def _opened(path: Path) -> BinaryIO:
    """The file, without what a crash left of a line; to be read, then appended to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(0)
    return file
