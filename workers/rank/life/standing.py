"""Tells where this rank stands when it waits too long: into the run folder, before it is ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.sheet import Sheet
from bundlerun.launcher.why.sockets import traffic
from bundlerun.launcher.why.stacks import SIGNAL, register
from bundlerun.launcher.why.stands import margin_s, stand_file, stand_of, write_stand

_AT_END = 0.5
"""A rank that others end tells where it stood if it did for this share of the limit."""
_WRITE_S = 0.5
_SCHEDULED_S = 1.0


class Standing:
    """Looks at this rank's own sheet, by a thread that is not the rank's own.

    Args:
        sheet: of this rank.
        node_name: of its node.
        local_rank: of the rank.
        clock: seconds; that of the sheet.
    """

    def __init__(
        self,
        sheet: Sheet,
        node_name: str,
        local_rank: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sheet = sheet
        self._node_name = node_name
        self._local_rank = local_rank
        self._clock = clock
        self._paths: RunPaths | None = None
        self._writing: threading.Thread | None = None
        self._is_told = False
        self._scheduled_at = 0.0

    def answer_signals(self) -> None:
        """Has stacks told at a signal, where the program has no use of its own for it."""
        if signal.getsignal(SIGNAL) is signal.SIG_DFL:
            with suppress(OSError, RuntimeError):
                self._sheet.stacks_fd = register()

    def tell_run_dir(self, run_dir: Path) -> None:
        """Says where it is told."""
        self._paths = RunPaths(run_dir)

    def look(self) -> None:
        """Tells once where this rank stands too long, and takes it back if it goes on."""
        now = self._clock()
        if now - self._scheduled_at >= _SCHEDULED_S:
            self._scheduled_at = now
            note_scheduled(self._sheet)
        if not self._is_watched:
            return
        limit_s = self._sheet.seat.limit_s
        stands = self._sheet.age_s(now) >= limit_s - margin_s(limit_s)
        if stands and not self._is_told:
            self._tell()
        elif self._is_told and not stands:
            self._is_told = False
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def end(self) -> None:
        """The rank is about to end: tells where it stands, if it does, and has it written."""
        if not self._is_watched:
            return
        age_s = self._sheet.age_s(self._clock())
        if not self._is_told and age_s >= _AT_END * self._sheet.seat.limit_s:
            self._tell()
        if self._writing is not None:
            self._writing.join(_WRITE_S)

    @property
    def _is_watched(self) -> bool:
        # A spare rank waits for the end of the run, and for nothing else.
        return self._paths is not None and self._sheet.is_filled and self._sheet.seat.bundle >= 0

    @property
    def _file(self) -> Path:
        assert self._paths is not None
        token = self._sheet.seat.token
        return stand_file(self._paths, self._node_name, token, self._local_rank)

    def _tell(self) -> None:
        self._is_told = True
        standing = self._sheet.standing(self._clock())
        stand = stand_of(
            self._sheet,
            standing,
            node_name=self._node_name,
            local_rank=self._local_rank,
            pid=os.getpid(),
            unsent={address: each.unsent for address, each in traffic().items() if each.unsent},
        )
        assert self._paths is not None
        # By a thread of its own: the folder may be what this rank waits for.
        self._writing = threading.Thread(
            target=write_stand, args=(self._paths, stand), name="bundlerun-stand", daemon=True
        )
        self._writing.start()


def note_scheduled(sheet: Sheet) -> None:
    """Says how long the rank's own thread has had a core, and waited for one."""
    with suppress(OSError, ValueError, IndexError):
        # The own thread of a process has its number.
        told = Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()
        sheet.scheduled(int(told[0]) / 1e9, int(told[1]) / 1e9)
