"""What a signal to `bundlerun run` does: it asks the run to stop, and only sets a number.

SIGTERM, SIGUSR1, SIGINT    all ranks stop after the same step and write a checkpoint
SIGINT once more            the ranks end at once
any, before a first rank that could stop in good order: as the second
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from launcher.board import Board

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LEFT_TO_TORCH = "SIGHUP,SIGQUIT"
"""Signals at which torch's agent ends its workers at once."""


class StopSignals:
    """The handlers, while in its `with`."""

    def __init__(self, board: Board) -> None:
        self.ended_by: signal.Signals | None = None
        """The signal that ended the agent at once."""
        self._board = board
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_again = number == signal.SIGINT and self._board.stop != 0
        # Between two rounds no rank is there, but those that come read the page, too.
        can_stop = bool(self._board.run_dir)
        self._board.stop = number
        if is_again or not can_stop:
            self.ended_by = signal.Signals(number)
            # torch hands this signal on to the workers, which ignore that of a terminal.
            raise _end_at_once(signal.SIGTERM)

    def __enter__(self) -> Self:
        for number in NUMBERS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end_at_once(number: signal.Signals) -> Exception:
    from torch.distributed.elastic.multiprocessing import SignalException

    return SignalException(f"stopped by {number.name}", number)
