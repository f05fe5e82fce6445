from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from bundlerun.launcher.commands.look.why import lines_of
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.onlooker import Onlooker
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.now import read_nows
from bundlerun.launcher.why.sheet import TOTAL, Message, Seat, Talk
from bundlerun.launcher.why.stands import read_stands, write_stand
from bundlerun.launcher.why.view import view_of
from tests.unit.launcher.why.stands import receives, stand

SEAT = Seat(rank=0, world_size=2, node=0, bundle=0, stage=0, replica=0, limit_s=20.0, token=7)


def manned(tmp_path: Path, silent_s: float) -> tuple[Onlooker, Board]:
    """An agent's onlooker, and two ranks that have stood for 17 s; only the first beats."""
    board = Board.create()
    board.run_dir = str(tmp_path)
    now_s = time.perf_counter()
    for local_rank, beats_ago_s in ((0, 0.0), (1, silent_s)):
        row, sheet = board.row(local_rank), board.sheet(local_rank)
        assert row is not None
        assert sheet is not None
        row.enter(os.getpid(), time.monotonic_ns() - int(1e9 * beats_ago_s))
        seat = replace(SEAT, rank=local_rank, stage=local_rank)
        sheet.enter(seat, now_s - 40.0)
        sheet.talks(Talk.NONE)
        sheet.words[TOTAL["forward"]] = 10.0
        sheet.count(100)
    sheet = board.sheet(0)
    assert sheet is not None
    sheet.awaits(Message.GRADIENT, 1, 3)
    return Onlooker(board, "n0", clock=lambda: now_s + 17.5), board


def test_an_agent_writes_down_what_its_ranks_do(tmp_path: Path) -> None:
    onlooker, _ = manned(tmp_path, silent_s=0.0)
    onlooker.look()
    paths = RunPaths(tmp_path)
    (now,) = read_nows(paths.all_nows())
    assert [rank.seconds["forward"] for rank in now.ranks] == [10.0, 10.0]
    assert [round(each.age_s, 1) for each in now.stands] == [17.5, 17.5]
    view = view_of(paths, now_s=time.time())
    assert view.present is not None
    assert lines_of(view)[0].startswith("now          step 0, 2 ranks")
    # Of files that nobody writes any more nothing is told.
    assert view_of(paths, now_s=time.time() + 60).present is None
    assert paths.all_stands() == []


def test_an_agent_says_where_a_rank_stands_that_has_lost_its_interpreter(tmp_path: Path) -> None:
    onlooker, board = manned(tmp_path, silent_s=40.0)
    onlooker.look()
    (found,) = read_stands(RunPaths(tmp_path).all_stands())
    assert (found.rank, found.by) == (1, "agent")
    text, _ = onlooker.verdict()
    # What its place is depends on what the process of the tests is doing.
    assert text.startswith("rank 1 (node n0, local rank 1, stage 1 of bundle 0) ")
    row = board.row(1)
    assert row is not None
    row.beat(time.monotonic_ns())
    onlooker.look()  # it can tell itself again
    assert RunPaths(tmp_path).all_stands() == []
    board.clear_rows()
    assert onlooker.verdict() == ("", [])


def test_only_the_first_node_tells_for_all(tmp_path: Path) -> None:
    onlooker, board = manned(tmp_path, silent_s=0.0)
    paths = RunPaths(tmp_path)
    for each in (stand(0, "data"), receives(1, 0)):
        write_stand(paths, each)
    text, stands = onlooker.verdict()
    assert "waited 18 s for its data" in text
    assert len(stands) == 2
    view = view_of(paths, now_s=time.time())
    assert view.stood is not None
    lines = lines_of(view, stacks=True)
    assert any(line.startswith("stood") and "waited 18 s for its data" in line for line in lines)
    for local_rank in (0, 1):
        sheet = board.sheet(local_rank)
        assert sheet is not None
        sheet.enter(replace(SEAT, node=1), 0.0)
    assert onlooker.verdict()[0] == ""
