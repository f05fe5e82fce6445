"""A rank's own end, seen from outside: each rank is a process of its own here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.ranks.board import BOARD_VARIABLE, Board, NextRound
from bundlerun.launcher.run_folder.events import read_events
from tests.waiting import wait_until

LIMIT_S = 60.0

RANK = """
import os, sys, threading, time
from pathlib import Path
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.run_folder.events import Events
from bundlerun.workers.rank.life.liveness import Liveness

folder, act = Path(sys.argv[1]), sys.argv[2]
life = Liveness(Board.open(os.environ), Events(folder / "n.jsonl", "n"), 2, is_launched=True)
life.tell_run_dir(folder)
copied = threading.Event()

def copy(limit_s):
    copied.wait(limit_s)
    (folder / "copied").write_text("whole")

life.before_end(copy)
threading.Timer(0.3, copied.set).start()
(folder / "here.new").write_text(str(os.getpid()))
(folder / "here.new").rename(folder / "here")
print("here", flush=True)
if act == "wait":
    time.sleep(600)
if act == "full":
    tries = []

    def pass_on():
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        (folder / "told").write_text(f"{len(tries)}")

    life.when_told_to_stop(pass_on)
    time.sleep(600)
if act == "moves":
    seen = []
    life.when_next_round(lambda told: seen.append(told.number))
    while not seen:
        time.sleep(0.01)
    life.has_moved(seen[0])
    life.when_next_round(lambda told: seen.append(told.number))
    (folder / "moved").touch()
    while len(seen) < 2:
        time.sleep(0.01)
    (folder / "seen.new").write_text(str(seen))
    (folder / "seen.new").rename(folder / "seen")
    life.ends(0)
if act == "stuck":
    stuck = threading.Thread(target=time.sleep, args=[600])  # not a daemon: Python would wait
    stuck.start()
    with life:
        raise ValueError("boom")
if act == "steps":
    for step in (11, 12):
        life.finished(step)
    life.ends(0)
"""


@contextmanager
def rank(folder: Path, board: Board, act: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {BOARD_VARIABLE: board.where, "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHELASTIC_ERROR_FILE", None)
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(folder), act],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_sigterm_ends_a_rank_once_its_copy_is_whole(tmp_path: Path) -> None:
    board = Board.create()
    with rank(tmp_path, board, "wait") as process:
        process.terminate()
        assert process.wait(timeout=LIMIT_S) == 128 + signal.SIGTERM
    assert (tmp_path / "copied").read_text() == "whole"
    ((local_rank, row),) = board.rows()
    assert (local_rank, row.exit_code) == (2, 128 + signal.SIGTERM)
    assert board.run_dir == str(tmp_path)


def test_an_error_ends_a_rank_at_once_and_is_told(tmp_path: Path) -> None:
    board = Board.create()
    with rank(tmp_path, board, "stuck") as process:
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert said.count("ValueError: boom") >= 1
    assert (tmp_path / "copied").read_text() == "whole"
    (failed,) = [row for row in read_events(tmp_path) if row["event"] == "failed"]
    assert failed["text"].strip().endswith("ValueError: boom")


def test_steps_and_beats_are_on_the_board(tmp_path: Path) -> None:
    board = Board.create()
    before = time.monotonic_ns()
    with rank(tmp_path, board, "steps") as process:
        assert process.wait(timeout=LIMIT_S) == 0
    ((_, row),) = board.rows()
    assert (row.pid, row.steps, row.step, row.exit_code) == (process.pid, 2, 12, 0)
    assert row.beat_ns > before
    assert [row["step"] for row in read_events(tmp_path)] == [11]


def test_a_stop_that_no_folder_takes_is_passed_on_at_a_later_beat(tmp_path: Path) -> None:
    board = Board.create()
    with rank(tmp_path, board, "full") as process:
        board.stop = signal.SIGTERM
        wait_until(lambda: (tmp_path / "told").exists() and bool((tmp_path / "told").read_text()))
        told = time.monotonic_ns()
        wait_until(lambda: board.rows()[0][1].beat_ns > told)
        process.kill()
        _, said = process.communicate()
    assert (tmp_path / "told").read_text() == "3"
    assert said.count("cannot pass on that the run is to stop: [Errno 28]") == 1


def test_a_rank_that_has_moved_waits_for_the_round_after_that(tmp_path: Path) -> None:
    board = Board.create()
    with rank(tmp_path, board, "moves") as process:
        board.next = next_round(2)
        wait_until(lambda: (tmp_path / "moved").exists())
        ((_, row),) = board.rows()
        for _ in range(2):  # a look at the board comes with each beat
            moved = row.beat_ns
            wait_until(lambda: row.beat_ns > moved)  # noqa: B023
        board.next = next_round(3)
        assert process.wait(timeout=LIMIT_S) == 0
    assert (tmp_path / "seen").read_text() == "[2, 3]"


def next_round(number: int) -> NextRound:
    return NextRound(
        number=number, host="a", port=1, first_rank=0, world_size=2, node=0, num_nodes=2
    )


@pytest.mark.parametrize("has_board", [True, False])
def test_a_rank_ends_with_its_agent(tmp_path: Path, has_board: bool) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    agent = os.fork()
    if agent == 0:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        words = [sys.executable, f"{tmp_path}/rank.py", str(tmp_path), "wait"]
        if has_board:  # which says who the agent is, though a shell stands between the two
            board = Board.create()
            environment[BOARD_VARIABLE] = board.where
            words = ["sh", "-c", " ".join(words) + "; true"]
        else:  # torchrun with a rendezvous of torch
            environment["TORCHELASTIC_RUN_ID"] = "none"
            environment.pop(BOARD_VARIABLE, None)
        subprocess.Popen(words, env=environment)
        time.sleep(600)
        os._exit(0)
    try:
        wait_until((tmp_path / "here").exists)
    finally:
        os.kill(agent, signal.SIGKILL)
        os.waitpid(agent, 0)
    pid = int((tmp_path / "here").read_text())
    try:
        wait_until(lambda: kernel_state(pid) in "XZ")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
