"""Follows the history of a run and tells a tracker each row of it exactly once.

The history (`metrics.jsonl`) is the truth: a step comes into it when no death can undo it, and is
cut out where it is done again after all. The journal says what the tracker was told of it.

    open --> compare journal and history --> take back --> lacking --> tell --> settled --+
                 ^                                                                        |
                 +------------------------------------------------------------------------+

Whatever dies on whatever line, the next follower begins at "open".
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from bundlerun.launcher.run_folder.history import read_last_rows
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.interface import (
    Ending,
    Row,
    TakesBack,
    Tracker,
    TrackerRun,
)
from bundlerun.launcher.trackers.journal import Batch, Journal, digest_of
from bundlerun.launcher.trackers.rows import rows_from, rows_with_places, up_to_kept

_BLOCK_BYTES = 256 << 10
"""Of the history at a time: about a thousand rows."""
_TAIL_BYTES = 64 << 10


class Follower:
    """One tracker of one run. Whoever has it holds the tracker's lock.

    Args:
        paths: of the run.
        name: of the tracker.
        opener: opens a run of the tracker.
        is_all: tells also what a death may take back of a tracker that cannot take back.
    """

    def __init__(
        self,
        paths: RunPaths,
        name: str,
        opener: Callable[[TrackerRun], Tracker],
        *,
        is_all: bool = False,
    ) -> None:
        self._paths = paths
        self._name = name
        self._opener = opener
        # Without snapshots nothing says what stays.
        self._is_all = is_all or _config(paths).get("snapshot") != "on"
        self._journal = Journal(paths.tracker_journal(name))
        self._tracker: Tracker | None = None

    @property
    def num_told(self) -> int:
        """Rows that the tracker has been told."""
        return self._journal.num_rows

    def step(self) -> bool:
        """Tells the next rows; False where there are none yet.

        Raises:
            OSError: the history cannot be read.
            Exception: whatever the tracker raises. A later call opens it again and goes on.
        """
        try:
            return self._step()
        except BaseException:
            # How far it came is as open as after a death.
            self._tracker = None
            raise

    def _step(self) -> bool:
        if not self._paths.metrics.exists():
            return False
        tracker = self._tracker or self._open()
        first_wrong = self._first_wrong()
        if first_wrong < len(self._journal.batches):
            self._take_back(tracker, first_wrong)
            return True
        begin = self._journal.end
        data, rows = self._next(begin, is_all=isinstance(tracker, TakesBack) or self._is_all)
        if not rows:
            return False
        self._journal.intend(Batch.of(begin, data, rows))
        tracker.tell(rows)
        if tracker.keeps_told:
            self._journal.settle()
        return True

    def close(self) -> None:
        """Ends the tracker in good order; everything told is there.

        Raises:
            Exception: whatever the tracker raises.
        """
        try:
            if self._tracker is not None:
                last = read_last_rows(self._paths.metrics, _TAIL_BYTES)[-1:]
                self._close("done" if last and last[0].get("kind") == "end" else "open")
        finally:
            self._journal.close()

    def _close(self, ending: Ending) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close(ending)
            self._journal.settle()

    def _open(self) -> Tracker:
        """Opens the tracker's run, and has it told what a death may have kept from it."""
        journal = self._journal
        if not journal.run:
            journal.begin(secrets.token_hex(6), 0)
        last_pid = journal.last_pid
        tracker = self._opener(self._run(last_pid))
        journal.go_on()
        wrong = self._first_wrong()
        # Batches that are not in the history any more are taken back, not finished.
        for batch in journal.batches[journal.settled : wrong]:
            rows = rows_from(self._bytes(batch), batch.first)
            missing = tracker.lacking(rows)
            if missing:
                tracker.tell(missing)
        if tracker.keeps_told and wrong == len(journal.batches):
            journal.settle()
        self._tracker = tracker
        return tracker

    def _run(self, last_pid: int) -> TrackerRun:
        journal = self._journal
        name = self._paths.root.absolute().name
        folder = self._paths.tracker_files(self._name)
        folder.mkdir(parents=True, exist_ok=True)
        return TrackerRun(
            key=f"{journal.run}-{journal.part}",
            # People count from 1; the first run has the plain name.
            name=f"{name}-{journal.part + 1}" if journal.part else name,
            group=name,
            folder=folder,
            config=_config(self._paths),
            last_pid=last_pid,
        )

    def _first_wrong(self) -> int:
        """The first batch that is not what the history has there now; their count if all are."""
        # The history changes at its end only, so what comes before a right batch is right.
        batches = self._journal.batches
        wrong = takewhile(lambda batch: not self._is_there(batch), reversed(batches))
        return len(batches) - sum(1 for _ in wrong)

    def _is_there(self, batch: Batch) -> bool:
        return digest_of(self._bytes(batch)) == batch.digest

    def _take_back(self, tracker: Tracker, wrong: int) -> None:
        """Steps are done again: takes out what was told of them, or begins a new run."""
        journal = self._journal
        step = min(batch.step for batch in journal.batches[wrong:])
        if not isinstance(tracker, TakesBack):
            self._close("replaced")
            journal.begin(journal.run, journal.part + 1)
            return
        tracker.take_back(step)
        # Rows that carry the same step may be in batches before: they are told again, too.
        kept = sum(1 for _ in takewhile(lambda b: b.high < step, journal.batches[:wrong]))
        cut = self._up_to(journal.batches[kept], step) if kept < wrong else None
        journal.keep(kept, cut)

    def _up_to(self, batch: Batch, step: int) -> Batch | None:
        """What is left of a batch without the rows from `step` on."""
        data = self._bytes(batch)
        pairs = list(takewhile(lambda p: p[1].step < step, rows_with_places(data, batch.first)))
        if not pairs:
            return None
        # Up to the end of the last line that stays.
        end = data.index(b"\n", pairs[-1][0]) + 1
        return Batch.of(batch.begin, data[:end], [row for _, row in pairs])

    def _bytes(self, batch: Batch) -> bytes:
        with self._paths.metrics.open("rb") as file:
            file.seek(batch.begin)
            return file.read(batch.end - batch.begin)

    def _next(self, begin: int, *, is_all: bool) -> tuple[bytes, list[Row]]:
        """Whole lines from there on, with a row at least if there is one yet."""
        data, lines, rows = b"", b"", list[Row]()
        with self._paths.metrics.open("rb") as file:
            file.seek(begin)
            while not rows and (more := file.read(_BLOCK_BYTES)):
                data += more
                lines = data[: data.rfind(b"\n") + 1]
                lines = lines if is_all else up_to_kept(lines)
                rows = rows_from(lines, self._journal.num_rows)
        return lines, rows


def _config(paths: RunPaths) -> dict[str, Any]:
    try:
        values = json.loads(paths.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def all_rows(paths: RunPaths) -> Sequence[Row]:
    """What a tracker has of a run once it was told everything."""
    return rows_from(paths.metrics.read_bytes())
