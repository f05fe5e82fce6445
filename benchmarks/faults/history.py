"""What a run's history says while it is written and rewritten."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.run_folder.history import Row, rows_of

_TAIL_BYTES = 16384
"""Some hundred lines: more than come between two looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A round began with this state. lost: finished steps that it did again."""

    at: float
    step: int
    source: str
    lost: int


class Tail:
    """Reads new lines of `metrics.jsonl` as they come.

    A resume takes lines out again, so only who has looked in time knows what was finished before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[tuple[float, str, int]] = set()
        self._version = (-1, -1)
        self.finished = 0
        """Steps finished, the most there ever were."""
        self.times: list[tuple[float, int]] = []
        """When a step was seen to be finished (monotonic, seconds), and how many were then."""
        self.resumes: list[Resume] = []

    def look(self) -> int:
        """Takes in what is new; the number of finished steps."""
        try:
            with self._path.open("rb") as file:
                # Of the open file: the path may stand for a new one a moment later.
                now = os.fstat(file.fileno())
                version = (now.st_size, now.st_mtime_ns)
                if version == self._version:
                    return self.finished
                self._version = version
                # Only the end: a long history read at every look would take time from the ranks.
                file.seek(max(0, now.st_size - _TAIL_BYTES))
                rows = list(rows_of(file.read()))  # what is cut at either end is left out
        except FileNotFoundError:
            return self.finished
        for row in rows:
            self._take(row)
        return self.finished

    def _take(self, row: Row) -> None:
        if row.get("kind") not in ("step", "restart"):
            return
        # With the time: a step that is done again has another row.
        key = (row["time"], row["kind"], row["step"])
        if key in self._seen:
            return
        self._seen.add(key)
        at = time.monotonic()
        if row["kind"] == "restart":
            # Finished before, by what was seen here; the rows themselves may be gone by now.
            lost = max(0, self.finished - row["step"])
            self.resumes.append(Resume(at=at, step=row["step"], source=row["source"], lost=lost))
            return
        self.times.append((at, row["step"] + 1))
        self.finished = max(self.finished, row["step"] + 1)

    def lost_since(self, index: int) -> int:
        """Finished steps that the resumes from that one on did again."""
        return sum(resume.lost for resume in self.resumes[index:])

    def next_finished(self, since: float) -> float | None:
        """When the first step was finished after the next resume after `since`."""
        resumed = next((r.at for r in self.resumes if r.at > since), None)
        # The round went on: nothing was resumed.
        if resumed is None:
            return None
        return next((at for at, _ in self.times if at >= resumed), None)
