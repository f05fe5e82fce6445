from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.watch import Watch
from bundlerun.launcher.run_folder.events import Events, read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.waiting import wait_until

LIMIT_S = 20.0


@contextmanager
def rank(board: Board, local_rank: int, *, beats: bool = True) -> Iterator[int]:
    """A process that only beats; nobody's rank."""
    pid = os.fork()
    if pid == 0:
        row = board.row(local_rank)
        assert row is not None
        row.enter(os.getpid(), time.monotonic_ns())
        while True:
            time.sleep(0.01)
            if beats:
                row.beat(time.monotonic_ns())
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextmanager
def watched(board: Board, folder: Path, silent_s: float = 60.0) -> Iterator[set[int]]:
    """A watch that runs; gives the pids that it has met, which it learns only by looking."""
    met: set[int] = set()

    def state_of(pid: int) -> str:
        met.add(pid)
        return kernel_state(pid)

    watch = Watch(
        board, Events(folder / "n.jsonl", "n"), lease_s=0.3, silent_s=silent_s, state_of=state_of
    )
    watch.start()
    try:
        yield met
    finally:
        watch.stop()


def wait_until_met(met: set[int], *pids: int) -> None:
    wait_until(lambda: met.issuperset(pids))


def wait_for_event(folder: Path, event: str) -> dict[str, object]:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for row in read_events(folder):
            if row["event"] == event:
                return row
        time.sleep(0.01)
    raise AssertionError(f"no {event!r}, only {[row['event'] for row in read_events(folder)]}")


def wait_for_row(board: Board, local_rank: int) -> None:
    wait_until(lambda: local_rank in [found for found, _ in board.rows()])


def test_a_rank_that_is_killed_is_noticed(tmp_path: Path) -> None:
    board = Board.create()
    with watched(board, tmp_path) as met, rank(board, 1) as pid:
        wait_until_met(met, pid)
        os.kill(pid, signal.SIGKILL)
        row = wait_for_event(tmp_path, "rank gone")
    assert (row["local_rank"], row["pid"]) == (1, pid)


def test_a_rank_that_torch_ended_over_nccl_is_told_with_its_record(tmp_path: Path) -> None:
    board = Board.create()
    board.run_dir = str(tmp_path)
    with watched(board, tmp_path) as met, rank(board, 1) as pid:
        wait_until_met(met, pid)
        record = RunPaths(tmp_path).flight_record("n", pid)
        record.parent.mkdir(parents=True)
        record.with_name(f"{record.name}1").touch()
        os.kill(pid, signal.SIGKILL)  # not SIGABRT, at which pytest prints all stacks
        why = str(wait_for_event(tmp_path, "rank gone")["why"])
    assert "NCCL did not end within --timeout-s" in why
    assert f"{record}1" in why


def test_a_rank_that_is_stopped_is_killed_after_the_lease_and_others_are_left(
    tmp_path: Path,
) -> None:
    board = Board.create()
    with watched(board, tmp_path), rank(board, 0) as healthy, rank(board, 1) as pid:
        wait_for_row(board, 1)
        os.kill(pid, signal.SIGSTOP)
        assert wait_for_event(tmp_path, "rank stopped")["local_rank"] == 1
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert kernel_state(healthy) in "RS"


def test_a_rank_that_gives_no_sign_of_life_is_killed(tmp_path: Path) -> None:
    board = Board.create()
    with watched(board, tmp_path, silent_s=0.5), rank(board, 0, beats=False) as pid:
        wait_for_row(board, 0)
        assert wait_for_event(tmp_path, "rank silent")["local_rank"] == 0
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("ends", ["agent", "other rank"])
def test_a_rank_that_cannot_hear_that_it_is_to_end_is_killed(tmp_path: Path, ends: str) -> None:
    board = Board.create()
    with watched(board, tmp_path) as met, rank(board, 0) as other, rank(board, 1, beats=False) as p:
        wait_until_met(met, other, p)
        if ends == "agent":
            board.end_start()
        else:
            os.kill(other, signal.SIGKILL)
        assert wait_for_event(tmp_path, "rank silent")["local_rank"] == 1
        _, status = os.waitpid(p, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_silent_rank_is_left_while_others_end_well(tmp_path: Path) -> None:
    board = Board.create()
    with watched(board, tmp_path) as met, rank(board, 0) as other, rank(board, 1, beats=False) as p:
        wait_until_met(met, other, p)
        row = board.row(0)
        assert row is not None
        row.end(75)
        os.kill(other, signal.SIGKILL)
        for _ in range(20):  # more looks than a rank has that is to end
            met.clear()
            wait_until_met(met, p)
        assert read_events(tmp_path) == []


def test_an_orderly_end_is_not_told(tmp_path: Path) -> None:
    board = Board.create()
    with watched(board, tmp_path) as met, rank(board, 0) as pid, rank(board, 1) as other:
        wait_until_met(met, pid, other)
        row = board.row(0)
        assert row is not None
        row.end(0)
        os.kill(pid, signal.SIGKILL)
        os.kill(other, signal.SIGKILL)
        wait_for_event(tmp_path, "rank gone")
    assert [event["local_rank"] for event in read_events(tmp_path)] == [1]


def test_a_rank_that_nobody_has_reaped_yet_is_told_once(tmp_path: Path) -> None:
    board = Board.create()
    with watched(board, tmp_path) as met, rank(board, 0) as pid, rank(board, 1) as healthy:
        wait_until_met(met, pid, healthy)
        os.kill(pid, signal.SIGKILL)
        wait_for_event(tmp_path, "rank gone")
        for _ in range(3):  # more looks, at a process that is a zombie
            met.clear()
            wait_until_met(met, healthy)
        assert [event["local_rank"] for event in read_events(tmp_path)] == [0]


def test_a_stop_request_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = Board.create()
    with watched(board, tmp_path):
        board.stop = signal.SIGTERM
        assert wait_for_event(tmp_path, "told to stop")["why"] == "SIGTERM"
    assert caplog.text.count("stops after this step") == 1
