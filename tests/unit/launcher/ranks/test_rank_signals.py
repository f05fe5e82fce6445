from __future__ import annotations

import os
import signal
import threading

import pytest

from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.rank_signals import (
    GRACE_S,
    GROUP_SIGNALS,
    AgentsWord,
    Situation,
    forget_pending,
    kept_from_children,
    must_end,
)

CALM = {"is_told": False, "is_ending": False, "is_broken": False, "is_whole": True}


@pytest.mark.parametrize(
    ("seen", "waited_s", "ends"),
    [
        ({}, 0.0, None),  # the agent may be about to say
        ({}, GRACE_S, True),  # it was for this rank alone
        ({"is_told": True}, 0.0, False),
        ({"is_told": True, "is_ending": True}, 0.0, True),
        ({"is_told": True, "is_broken": True}, 0.0, True),  # no step can be finished
        ({"is_told": True, "is_whole": False}, 0.0, None),
        ({"is_told": True, "is_whole": False}, GRACE_S, True),
        ({"is_ending": True}, 0.0, True),
    ],
)
def test_sigterm_ends_a_rank_save_where_all_stop_in_good_order(
    seen: dict[str, bool], waited_s: float, ends: bool | None
) -> None:
    assert must_end(Situation(**CALM | seen), waited_s) is ends


def board_of(*pids: int) -> Board:
    board = Board.create()
    for local_rank, pid in enumerate(pids):
        row = board.row(local_rank)
        assert row is not None
        row.enter(pid, 0)
    return board


def test_a_rank_that_was_killed_lets_sigterm_end_the_others_though_they_are_told_to_stop() -> None:
    board = board_of(11, 12)
    board.stop = signal.SIGTERM
    states = {11: "R", 12: "R"}
    word = AgentsWord(board, 2, states.__getitem__)
    assert not word.must_end()
    states[12] = "Z"
    assert word.must_end()


@pytest.mark.parametrize(("code", "is_broken"), [(0, False), (75, False), (1, True), (143, True)])
def test_a_rank_that_has_stopped_in_good_order_breaks_nothing(code: int, is_broken: bool) -> None:
    board = board_of(11, 12)
    board.stop = signal.SIGTERM
    row = board.row(1)
    assert row is not None
    row.end(code)
    word = AgentsWord(board, 2, {11: "R", 12: "X"}.__getitem__)
    assert word.must_end() == is_broken


def test_a_new_start_is_not_the_one_that_was_to_end() -> None:
    board = board_of(os.getpid())
    board.stop = signal.SIGTERM
    board.end_start()
    assert AgentsWord(board, 1).must_end()
    board.clear_rows()
    row = board.row(0)
    assert row is not None
    row.enter(os.getpid(), 0)
    assert not AgentsWord(board, 1).must_end()


def test_without_a_board_every_sigterm_is_meant() -> None:
    assert AgentsWord(None, 1).must_end()


def test_a_standby_that_becomes_a_rank_forgets_what_its_group_was_sent_before() -> None:
    heard: list[int] = []
    before = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in GROUP_SIGNALS}
    try:
        with kept_from_children():
            for number in GROUP_SIGNALS:
                # To this thread: the process may have others, which have not blocked it.
                signal.pthread_kill(threading.get_ident(), number)
            assert set(GROUP_SIGNALS) <= signal.sigpending()
            forget_pending()
            assert not signal.sigpending()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGUSR1]
