"""What a signal does to a process that decides about a run: it asks the run to stop.

SIGTERM, SIGUSR1, SIGINT, SIGHUP    all ranks stop after the same step and write a checkpoint
SIGINT once more                    the ranks end at once
any, before a first rank that could stop in good order: as the second
SIGQUIT                             all end at once; left to torch

SIGHUP comes when a terminal is closed or a connection is lost. Under nohup it stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn, Protocol, Self

from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.fork_server import kill_fork_server
from bundlerun.launcher.ranks.watch import stop_text

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
LEFT_TO_TORCH = "SIGQUIT"
"""Signals at which torch's agent ends its workers at once."""
NOT_HEARD = (
    "not called from the main thread, where Python hears signals: none is handled; to stop the "
    "run use bundlerun drain"
)


class EndAtOnce(Protocol):
    """How the process ends that has no time for good order."""

    def __call__(self, number: signal.Signals, *, has_ranks: bool) -> NoReturn:
        """Ends it; `has_ranks`: one has come that could stop in good order."""


class StopSignals:
    """The handlers, while in its `with`.

    Args:
        board: where the request is written.
        end_at_once: what a signal does that is not, or not only, a request.
        tells_itself: a request is told here; an agent's watch does that with its event.
    """

    def __init__(self, board: Board, end_at_once: EndAtOnce, *, tells_itself: bool = False) -> None:
        self._end_at_once = end_at_once
        self.ended_by: signal.Signals | None = None
        """The signal that ended this process at once."""
        self.is_heard = threading.current_thread() is threading.main_thread()
        """Python has handlers in its main thread only."""
        self._board = board
        self._tells_itself = tells_itself
        self._before: dict[signal.Signals, Any] = {}

    def end_by(self, end_at_once: EndAtOnce) -> None:
        """From now on, this is what a signal does that is not, or not only, a request."""
        self._end_at_once = end_at_once

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        is_again = number == signal.SIGINT and self._board.stop != 0
        # Between two rounds no rank is there, but those that come read the page, too.
        can_stop = bool(self._board.run_dir)
        if self._tells_itself and self._board.stop == 0:
            _tell(stop_text(name))
        self._board.stop = number
        if is_again or not can_stop:
            self.ended_by = signal.Signals(number)
            # Before the ranks get SIGTERM: they look at the board for what it means.
            self._board.end_start()
            self._end_at_once(self.ended_by, has_ranks=can_stop)

    def __enter__(self) -> Self:
        if not self.is_heard:
            return self
        for number in NUMBERS:
            is_nohup = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
            if not is_nohup:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def exit_now(number: signal.Signals, *, has_ranks: bool) -> NoReturn:
    """Ends this process, which has nothing yet that would have to be left in order."""
    _tell(f"stopped by {number.name}")
    os._exit(128 + number)


def _tell(text: str) -> None:
    """For a handler, which may not print or log; after SIGHUP the terminal is gone."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def leave_agent(number: signal.Signals, *, has_ranks: bool) -> NoReturn:
    """Has torch's agent end its workers and leave the rendezvous."""
    from torch.distributed.elastic.multiprocessing import SignalException

    if not has_ranks:
        kill_fork_server()  # they may be about to start, of which torch knows nothing yet
    # torch hands this signal on to the workers, which leave those of a terminal to the agent.
    raise SignalException(f"stopped by {number.name}", signal.SIGTERM)
