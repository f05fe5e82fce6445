"""A fork server that keeps standbys, with a launcher of two ranks that do next to nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.standby import is_calm

ROOT = Path(__file__).parents[4]
WORDS = [sys.executable, "-m", "tests.unit.launcher.ranks.warm_family"]
STARTS = 6
"""A standby that is not ready yet when its rank is asked for waits for the next start."""


def starts_of(folder: Path, *words: str) -> list[list[dict[str, Any]]]:
    """What the ranks of each start have found."""
    done = subprocess.run(
        [*WORDS, str(folder), str(STARTS), *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line in lines:
        for rank in line["ranks"]:
            # As for every forked rank: who asked has its process and its exit code.
            assert (rank["parent"], rank["known_as"]) == (line["server"], rank["pid"])
            assert rank["exit_code"] == 7 + rank["rank"]
            # What becomes a rank was warmed up as that rank.
            assert rank["pid"] not in line["killed"]
            assert rank["warmed_as"] == (str(rank["rank"]) if rank["was_standby"] else None)
    return [line["ranks"] for line in lines]


def standbys(starts: list[list[dict[str, Any]]]) -> list[list[bool]]:
    return [[rank["was_standby"] for rank in ranks] for ranks in starts]


def test_each_start_takes_the_standbys_of_its_ranks_and_has_them_replaced(tmp_path: Path) -> None:
    starts = starts_of(tmp_path)
    found = standbys(starts)
    assert found[0] == [False, False]
    assert [True, True] in found
    pids = [rank["pid"] for ranks in starts for rank in ranks]
    assert len(set(pids)) == len(pids)
    # None has anything of what the server has for others.
    num_files = {rank["num_files"] for ranks in starts for rank in ranks if rank["was_standby"]}
    assert max(num_files) <= min(rank["num_files"] for rank in starts[0])


def test_a_rank_without_a_standby_is_forked(tmp_path: Path) -> None:
    found = standbys(starts_of(tmp_path, "refuse"))
    assert all(not second for _, second in found)
    assert [True, False] in found


def test_a_standby_that_is_killed_is_no_loss(tmp_path: Path) -> None:
    found = standbys(starts_of(tmp_path, "kill"))
    assert any(first for first, _ in found)  # another one has come
    assert any(second for _, second in found)


def test_standbys_end_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [*WORDS, str(tmp_path), "1", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert launcher.stdout is not None
    server = json.loads(launcher.stdout.readline())["server"]
    pids = [server, *json.loads(launcher.stdout.readline())]
    family = [psutil.Process(pid) for pid in pids]
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(timeout=10)
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        process.kill()
    assert [process.pid for process in alive] == []


@pytest.mark.parametrize(
    ("steps", "spare", "is_told", "wanted"),
    [
        ([3, 3], None, False, True),
        ([3, 2], None, False, False),
        ([3], None, False, False),
        ([3, 0], 1, False, True),
        ([3, 3], None, True, False),
    ],
)
def test_standbys_wait_until_the_ranks_do_their_steps(
    steps: list[int], spare: int | None, is_told: bool, wanted: bool
) -> None:
    board = Board.create()
    for local_rank, count in enumerate(steps):
        row = board.row(local_rank)
        assert row is not None
        row.enter(1, 0)
        for step in range(count):
            row.finish(step)
        if local_rank == spare:
            row.stand_by()
    board.stop = int(is_told)
    assert is_calm(board, 2) is wanted
