"""What an agent makes of how its ranks ended, and what it tells of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundlerun.launcher.errors import EXIT_NODE
from bundlerun.launcher.ranks.board import Board, Moves, NextRound
from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.ranks.fault import Fault, FaultKind
from bundlerun.launcher.ranks.node_ranks import Ranks
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


def ranks_of(board: Board, *, has_rows: bool) -> Ranks:
    return Ranks(board, Events(None, "n"), lease_s=1.5, give_up_after=3, has_rows=has_rows)


@pytest.mark.parametrize("has_rows", [True, False])
def test_ranks_that_die_before_they_say_anything_have_finished_no_step(has_rows: bool) -> None:
    ranks = ranks_of(Board.create(), has_rows=has_rows)
    why = []
    for _ in range(3):
        ranks.begin()
        why.append(ranks.settle(over=None))
    # Of a program that never says how it fares nothing is known; torch's own limit holds.
    assert why == ["", "", "3 attempts in a row finished no new step" if has_rows else ""]


def test_a_rank_that_has_spoken_once_is_one_of_those_who_do() -> None:
    board = Board.create()
    board.run_dir = "/runs/r"
    ranks = ranks_of(board, has_rows=False)
    for expected in ("", "", "3 attempts in a row finished no new step"):
        ranks.begin()
        assert ranks.settle(over=EndCause.ASKS) == expected


def test_what_a_rank_raised_is_read_from_its_row() -> None:
    board = Board.create()
    ranks = ranks_of(board, has_rows=True)
    row = board.row(0)
    assert row is not None
    for expected in ("", "the same error at the same place and step again, as in another start"):
        ranks.begin()
        row.enter(1, 0)
        row.begin_at(7)
        row.finish(8)
        row.fail(Fault(FaultKind.PROGRAM, 77))
        row.end(1)
        assert ranks.settle(over=None) == expected


def test_a_rank_that_stopped_in_good_order_says_so_for_one_that_died_on_the_way_out() -> None:
    board = Board.create()
    ranks = ranks_of(board, has_rows=True)
    ranks.begin()
    for local_rank, code in enumerate((75, None)):
        row = board.row(local_rank)
        assert row is not None
        row.enter(1, 0)
        if code is not None:
            row.end(code)
    assert ranks.settle(over=None) != ""
    assert ranks.have_stopped


def test_a_run_whose_ranks_all_blame_the_machine_is_written_down_so(tmp_path: Path) -> None:
    board = Board.create()
    board.run_dir = str(tmp_path)
    for local_rank in (0, 1):
        row = board.row(local_rank)
        assert row is not None
        row.enter(1, 0)
        row.end(EXIT_NODE)
    ranks_of(board, has_rows=True).failed("3 attempts in a row finished no new step")
    outcome = read_outcome(RunPaths(tmp_path))
    assert outcome is not None
    assert outcome.exit_code == EXIT_NODE


OWN = {"text": "Traceback ...\nValueError: boom", "is_follower": False}
FOLLOWER = {
    "text": "Traceback ...\nRuntimeError: [gloo] Connection closed by peer",
    "is_follower": True,
}


@pytest.mark.parametrize(
    ("failures", "story"),
    [
        ([], ""),
        ([FOLLOWER], ""),
        ([FOLLOWER, OWN], "node a: local rank 1 failed: ValueError: boom; all ranks start again"),
    ],
)
def test_the_error_of_a_rank_that_starts_again_is_told_where_it_was(
    tmp_path: Path, failures: list[dict[str, object]], story: str
) -> None:
    board, paths = Board.create(), RunPaths(tmp_path)
    board.run_dir = str(tmp_path)
    events = Events(paths.node_events("a"), "a")
    events.note("failed", {"local_rank": 0, "text": "ValueError: of an earlier start"})
    # Before the machine was started again, when its clock stood higher.
    lost = {"t_s": time.monotonic() + 1e6, "boot": "before", "node": "a", "event": "failed"}
    with paths.node_events("a").open("a") as file:
        file.write(json.dumps({**lost, "local_rank": 0, "text": "ValueError: long ago"}) + "\n")
    time.sleep(0.001)
    ranks = ranks_of(board, has_rows=True)
    ranks.begin()
    for local_rank, failure in enumerate(failures):
        events.note("failed", {"local_rank": local_rank, **failure})
    assert ranks.story("a") == story


NEXT = NextRound(number=4, host="a", port=1, first_rank=0, world_size=3, node=0, num_nodes=2)


@pytest.mark.parametrize(
    ("says", "goes"), [(Moves.CAN, True), (Moves.UNKNOWN, False), (Moves.CANNOT, False)]
)
def test_ranks_go_on_in_another_round_only_where_all_can(says: Moves, goes: bool) -> None:
    board = Board.create()
    ranks = ranks_of(board, has_rows=True)
    ranks.begin()
    for local_rank, how in enumerate((Moves.CAN, says)):
        row = board.row(local_rank)
        assert row is not None
        row.enter(10 + local_rank, 0)
        row.moves = how
    assert ranks.go_on_in(NEXT) is goes
    assert (board.next_number == 4) is goes
    assert ranks.cannot_go_on is (says is Moves.CANNOT)


def test_ranks_that_have_not_come_yet_go_on_in_no_round() -> None:
    ranks = ranks_of(Board.create(), has_rows=True)
    ranks.begin()
    assert not ranks.go_on_in(NEXT)
    assert not ranks.are_in(4, 1)


def test_all_ranks_of_a_node_are_in_a_round_once_each_has_said_so() -> None:
    board = Board.create()
    ranks = ranks_of(board, has_rows=True)
    ranks.begin(joins=4)
    assert board.joins == 4
    for local_rank in range(2):
        assert not ranks.are_in(4, 2)
        row = board.row(local_rank)
        assert row is not None
        row.enter(10 + local_rank, 0)
        row.round = 4
    assert ranks.are_in(4, 2)
    assert not ranks.are_in(5, 2)


def test_a_pause_is_from_the_end_of_a_round_to_the_first_step_without_the_wait_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("bundlerun.launcher.ranks.node_ranks.time", clock)
    board = Board.create()
    ranks = ranks_of(board, has_rows=True)
    row = board.row(0)
    assert row is not None
    found = []
    for _ in range(2):
        ranks.begin()
        row.enter(1, 0)
        found.append(ranks.pause_s())
        now[0] += 2
        row.finish(1)
        found += [ranks.pause_s(), ranks.pause_s()]
        ranks.end_start()
        found.append(ranks.pause_s())
        now[0] += 1
        ranks.settle(over=EndCause.JOINS)
        found.append(ranks.pause_s())
        now[0] += 60
    # Told once, once steps are done again; and of the first start there is none.
    assert found == [0, 0, 0, 0, 0, 0, 3, 0, 0, 0]
