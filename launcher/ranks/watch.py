"""A thread of the agent that looks after its ranks: who died, who is stopped, who is silent.

torch's agent notices a rank only when it has ended. A rank that is stopped (SIGSTOP, a debugger) or
whose interpreter hangs keeps all others waiting: it is killed here, and then is one that has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bundlerun.launcher.errors import EXIT_DONE, EXIT_RESUMABLE
from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.ranks.abort import found_record, why_aborted
from bundlerun.launcher.ranks.board import Board, Row
from bundlerun.launcher.run_folder.events import EventName, Events

log = logging.getLogger(__name__)

SILENT_S = 60.0
"""A rank's thread beats several times a second, but waits while a call keeps the interpreter."""
_LEASE_LOOKS = 6
_ENDING_LOOKS = 2 * _LEASE_LOOKS
"""After so many a rank that is to end and gives no sign is killed: its handler of SIGTERM waits for
the interpreter, too, and torch's agent would wait 30 s for it."""


@dataclass(slots=True)
class _Rank:
    local_rank: int
    pid: int
    pidfd: int
    row: Row
    looks_stopped: int = 0
    looks_silent: int = 0
    is_told: bool = False


class Watch:
    """The thread.

    Args:
        board: where the ranks have their rows.
        events: this node's event log.
        lease_s: how long a rank may be stopped before it counts as dead.
        silent_s: how long a rank may give no sign of life.
        state_of: the kernel's state letter of a process.
    """

    def __init__(
        self,
        board: Board,
        events: Events,
        *,
        lease_s: float,
        silent_s: float = SILENT_S,
        state_of: Callable[[int], str] | None = None,
    ) -> None:
        self._board = board
        self._events = events
        self._look_s = lease_s / _LEASE_LOOKS
        self._silent_looks = silent_s / self._look_s
        self._state_of = state_of or kernel_state
        self._ranks: dict[int, _Rank] = {}
        self._ended: set[int] = set()
        """Processes that have ended, and are still in a row: nobody may have reaped them yet."""
        self._has_heard = False
        self._poll = select.poll()
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC)
        self._poll.register(self._wake_r, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="bundlerun-watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        os.write(self._wake_w, b"x")
        self._thread.join(5.0)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            wait_s = max(0.0, due - time.monotonic())
            ready = [fd for fd, _ in self._poll.poll(1000 * wait_s)]
            if self._wake_r in ready:
                break
            self._hear_stop()
            for fd in ready:
                self._gone(fd)
            if time.monotonic() >= due:
                self._look()
                # Looks are counted, not seconds: a pause of this process is nobody's silence.
                due = time.monotonic() + self._look_s
        for fd in list(self._ranks):
            self._forget(fd)
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _hear_stop(self) -> None:
        """Says what the signal handler, which only sets a number, may not."""
        number = self._board.stop
        if number and not self._has_heard:
            self._has_heard = True
            name = signal.Signals(number).name
            self._events.note("told to stop", {"why": name})
            log.warning("%s", stop_text(name))

    def _look(self) -> None:
        rows = list(self._board.rows())
        # A process id that is in no row any more may be given to a new process.
        self._ended &= {row.pid for _, row in rows}
        known = self._ended | {rank.pid for rank in self._ranks.values()}
        for local_rank, row in rows:
            if row.pid not in known:
                self._meet(local_rank, row)
        is_ending = self._board.is_ending or self._has_lost(rows)
        for rank in list(self._ranks.values()):
            is_stopped = self._state_of(rank.pid) in "Tt"
            silent_s = (time.monotonic_ns() - rank.row.beat_ns) / 1e9
            # A row that the rank's successor has taken over says nothing about this process.
            is_silent = rank.row.pid == rank.pid and silent_s > 2 * self._look_s
            rank.looks_stopped = rank.looks_stopped + 1 if is_stopped else 0
            rank.looks_silent = rank.looks_silent + 1 if is_silent else 0
            if rank.looks_stopped > _LEASE_LOOKS:
                why = f"the process is stopped (SIGSTOP or a debugger){self._where(rank)}"
                self._kill(rank, "rank stopped", why)
            elif rank.looks_silent > (_ENDING_LOOKS if is_ending else self._silent_looks):
                why = f"no sign of life for {silent_s:.0f} s{self._where(rank)}"
                self._kill(rank, "rank silent", why)

    def _has_lost(self, rows: list[tuple[int, Row]]) -> bool:
        """Whether a rank of this start has failed or died: the agent ends the others then."""
        good = (EXIT_DONE, EXIT_RESUMABLE)
        return any(row.pid in self._ended and row.exit_code not in good for _, row in rows)

    def _where(self, rank: _Rank) -> str:
        """What a rank was doing, to be said after what is wrong with it."""
        sheet = self._board.sheet(rank.local_rank)
        if sheet is None or not sheet.is_filled:
            return ""
        phase = sheet.standing(time.perf_counter()).phase
        return f", in {phase.replace('_', ' ')} of step {sheet.step}" if phase else ""

    def _meet(self, local_rank: int, row: Row) -> None:
        pid = row.pid
        with contextlib.suppress(ProcessLookupError):
            # A pidfd never comes to mean another process, as a process id may.
            pidfd = os.pidfd_open(pid)
            self._ranks[pidfd] = _Rank(local_rank, pid, pidfd, row)
            self._poll.register(pidfd, select.POLLIN)

    def _gone(self, pidfd: int) -> None:
        rank = self._ranks[pidfd]
        is_orderly = rank.row.pid != rank.pid or rank.row.exit_code is not None
        if not is_orderly and not rank.is_told:
            record = found_record(self._board.run_dir, self._events.node, rank.pid)
            why = why_aborted(record) or "it was killed, or ended without a word"
            self._note(rank, "rank gone", why)
        self._ended.add(rank.pid)
        self._forget(pidfd)

    def _kill(self, rank: _Rank, event: EventName, why: str) -> None:
        self._note(rank, event, why)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(rank.pidfd, signal.SIGKILL)
        rank.looks_stopped = rank.looks_silent = 0
        # Its end, which follows, needs no second line.
        rank.is_told = True

    def _note(self, rank: _Rank, event: EventName, why: str) -> None:
        log.warning("local rank %d (process %d): %s", rank.local_rank, rank.pid, why)
        self._events.note(event, {"local_rank": rank.local_rank, "pid": rank.pid, "why": why})

    def _forget(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        del self._ranks[pidfd]


def stop_text(name: str) -> str:
    """What is told when a signal has asked the run to stop."""
    return f"{name}: the run stops after this step; SIGINT ends it at once"
