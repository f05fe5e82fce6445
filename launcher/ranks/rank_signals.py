"""What a signal to a rank means: its agent says so on the board, whoever else sends signals.

    SIGTERM     the agent ends a start of the ranks by it: a rank ends at once. A whole group gets
                it, too (timeout, systemd, a batch system): then the agent has it as well, says on
                the board that the run stops, and ranks stop in good order
    SIGINT, SIGHUP, SIGUSR1     a group gets them: they are the agent's, the board says the rest

Processes that help (the fork server, the resource tracker, loading processes) keep all four from
them: they live and die with their parents.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bundlerun.launcher.errors import EXIT_DONE, EXIT_RESUMABLE
from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.ranks.board import Board

GROUP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

GRACE_S = 1.0
"""How long a rank waits for its agent to say what a SIGTERM was for."""
_LOOK_S = 0.02
_GOOD_ENDS = (EXIT_DONE, EXIT_RESUMABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a rank sees on the board when it gets SIGTERM.

    is_told: the run is to stop in good order. is_ending: the agent ends this start of the ranks.
    is_broken: a rank of this node has failed or was killed. is_whole: all ranks have come.
    """

    is_told: bool
    is_ending: bool
    is_broken: bool
    is_whole: bool


def must_end(seen: Situation, waited_s: float) -> bool | None:
    """Pure: whether SIGTERM ends the rank at once; None: not known yet, look again."""
    if seen.is_ending or seen.is_broken:
        return True
    # Stopping in good order takes every rank: those that have not come could not join in.
    if seen.is_told and seen.is_whole:
        return False
    return True if waited_s >= GRACE_S else None


class AgentsWord:
    """What the agent of this rank wants; without a board every SIGTERM is meant.

    Args:
        board: the agent's page; None without one.
        num_ranks: of this node.
        state_of: the kernel's state letter of a process.
    """

    def __init__(
        self,
        board: Board | None,
        num_ranks: int,
        state_of: Callable[[int], str] = kernel_state,
    ) -> None:
        self._board = board
        self._num_ranks = num_ranks
        self._state_of = state_of

    @classmethod
    def of_rank(cls, board: Board | None, environ: Mapping[str, str]) -> AgentsWord:
        """For the rank that this process is."""
        return cls(board, int(environ.get("LOCAL_WORLD_SIZE", "1")))

    def must_end(self) -> bool:
        """Whether the SIGTERM that has come is to end this rank; returns within `GRACE_S`."""
        if self._board is None:
            return True
        begin = time.monotonic()
        while (answer := must_end(self._look(self._board), time.monotonic() - begin)) is None:
            time.sleep(_LOOK_S)
        return answer

    def _look(self, board: Board) -> Situation:
        rows = [row for _, row in board.rows()]
        codes = [row.exit_code for row in rows]
        # Without an exit code and without a process: killed, and its peers can only wait for it.
        gone = [
            row
            for row, code in zip(rows, codes, strict=True)
            if code is None and self._state_of(row.pid) in "XZ"
        ]
        return Situation(
            is_told=board.is_told_to_stop,
            is_ending=board.is_ending,
            is_broken=bool(gone) or any(c is not None and c not in _GOOD_ENDS for c in codes),
            is_whole=len(rows) >= self._num_ranks,
        )


def hear_agent(word: AgentsWord, end: Callable[[], None]) -> None:
    """For a rank as it begins, which its fork server has made with all four signals blocked.

    Args:
        end: ends this process.
    """

    def hear(*_: object) -> None:
        if word.must_end():
            end()

    signal.signal(signal.SIGTERM, hear)
    for number in GROUP_SIGNALS[1:]:
        signal.signal(number, signal.SIG_IGN)
    # Last: what came before the handlers were set is heard now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that are started inside never get the four signals, nor do their children.

    Blocked, and not ignored: a child that unblocks them has what was sent to it in the meantime.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forget_pending() -> None:
    """Drops what was sent to this process while it kept the four signals from itself.

    For one that becomes a rank now: it was meant for what the group was doing then.
    """
    for number in GROUP_SIGNALS:
        before = signal.signal(number, signal.SIG_IGN)  # the kernel drops those that wait
        signal.signal(number, before if before is not None else signal.SIG_DFL)


def keep_from_here() -> None:
    """Keeps the four signals from this process from now on; for helpers, in their main thread."""
    signal.set_wakeup_fd(-1)  # one that a rank has forked has the rank's
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_process(exit_code: int) -> None:
    """Ends it at once: nothing is unwound, as that would wait for ranks that are gone."""
    os._exit(exit_code)
