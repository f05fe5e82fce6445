import os
import signal

import pytest
from torch.distributed.elastic.multiprocessing import SignalException

from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.signals import StopSignals, leave_agent


def test_before_a_first_rank_a_signal_ends_all_at_once() -> None:
    with StopSignals(Board.create(), leave_agent) as signals, pytest.raises(SignalException):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.ended_by == signal.SIGTERM


def test_between_two_rounds_a_signal_waits_for_the_ranks_that_come() -> None:
    board = Board.create()
    board.run_dir = "/runs/r"
    with StopSignals(board, leave_agent) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
    assert (board.stop, signals.ended_by) == (signal.SIGTERM, None)


def test_a_second_interrupt_ends_all_at_once() -> None:
    board = Board.create()
    board.run_dir = "/runs/r"
    with StopSignals(board, leave_agent) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SignalException):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.ended_by == signal.SIGINT
