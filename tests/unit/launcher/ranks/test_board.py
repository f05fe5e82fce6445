from __future__ import annotations

import os

from bundlerun.launcher.ranks.board import (
    BOARD_VARIABLE,
    NUM_ROWS,
    Board,
    Moves,
    NextRound,
    agents_board,
)


def test_another_process_sees_what_a_rank_writes_and_the_rank_what_the_agent_does() -> None:
    agents = Board.create()
    agents.stop = 15
    pid = os.fork()
    if pid == 0:
        ranks = Board.open({BOARD_VARIABLE: agents.where})
        row = ranks.row(3) if ranks else None
        if ranks is None or row is None:
            os._exit(1)
        row.enter(77, 5)
        row.finish(41)
        row.finish(42)
        row.end(0)
        ranks.run_dir = "/data/run ü"
        ranks.agree_to_stop()
        os._exit(0 if ranks.stop == 15 else 1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    ((local_rank, row),) = agents.rows()
    assert (local_rank, row.pid, row.beat_ns, row.steps, row.step) == (3, 77, 5, 2, 42)
    assert row.exit_code == 0
    assert agents.run_dir == "/data/run ü"
    agents.stop = 0
    assert agents.is_told_to_stop  # all ranks have agreed to


def test_a_row_begins_anew_with_each_start_of_a_rank() -> None:
    board = Board.create()
    row = board.row(0)
    assert row is not None
    row.enter(7, 1)
    row.finish(9)
    row.end(2)
    row.enter(8, 2)
    assert (row.pid, row.steps, row.step, row.exit_code) == (8, 0, 0, None)
    board.clear_rows()
    assert board.rows() == []


def test_ranks_beyond_the_last_row_have_none() -> None:
    board = Board.create()
    assert board.row(NUM_ROWS) is None
    assert board.row(-1) is None
    assert board.row(NUM_ROWS - 1) is not None


def test_an_agent_does_not_take_the_page_of_another_agent_for_its_own() -> None:
    own = Board.create()
    assert agents_board({BOARD_VARIABLE: own.where}).where == own.where
    assert agents_board({}).where != own.where
    assert Board.open({BOARD_VARIABLE: "/proc/self/fd/9999"}) is None
    assert Board.open({}) is None


def test_ranks_are_told_of_the_round_that_they_go_on_in_until_they_begin_anew() -> None:
    agents = Board.create()
    ranks = Board.open({BOARD_VARIABLE: agents.where})
    assert ranks is not None
    assert (ranks.next_number, ranks.joins) == (0, 0)
    told = NextRound(
        number=7, host="node-ü", port=29400, first_rank=2, world_size=6, node=1, num_nodes=3
    )
    agents.run_dir = "/runs/r"
    agents.next = told
    agents.joins = 7
    assert (ranks.next_number, ranks.next, ranks.joins) == (7, told, 7)
    assert ranks.run_dir == "/runs/r"
    agents.clear_rows()
    assert (ranks.next_number, ranks.joins) == (0, 0)


def test_a_rank_says_whether_it_can_go_on_and_where_it_is() -> None:
    row = Board.create().row(5)
    assert row is not None
    row.enter(7, 1)
    assert (row.moves, row.round) == (Moves.UNKNOWN, 0)
    row.moves = Moves.CAN
    row.round = 3
    assert (row.moves, row.round) == (Moves.CAN, 3)
    row.enter(8, 2)
    assert (row.moves, row.round) == (Moves.UNKNOWN, 0)
