"""A launcher whose fork server keeps two standbys; prints a line of JSON for each start of ranks.

python -m tests.unit.launcher.ranks.warm_family FOLDER STARTS [refuse] [kill] [wait]

Starts its two ranks STARTS times, and waits for standbys before each but the first. refuse: local
rank 1 has none. kill: the first standby of local rank 0 is killed. wait: the launcher stays at the
end, and prints the standbys.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.ranks.board import BOARD_VARIABLE, Board
from bundlerun.launcher.ranks.fork_server import start_fork_server
from bundlerun.launcher.ranks.standby import TAKEN_VARIABLE, Standbys
from tests.waiting import wait_until

NUM_RANKS = 2
NUM_STEPS = 5
EXIT_CODE = 7
_WARMED = "TEST_WARMED_AS"


def warm_up(argv: Sequence[str], local_rank: int, num_ranks: int, wait: Callable[[], int]) -> bool:
    """Leaves a file that says who is warm; see `WarmUp`."""
    assert num_ranks == NUM_RANKS
    wait()
    if "refuse" in argv and local_rank == 1:
        return False
    os.environ[_WARMED] = str(local_rank)
    (Path(argv[0]) / str(local_rank)).write_text(str(os.getpid()))
    return True


def rank(local_rank: int, answers: SimpleQueue[dict[str, object]]) -> None:
    """Does its steps, says who it is, and ends with a code of its own."""
    board = Board.open(os.environ)
    row = board.row(local_rank) if board else None
    assert row is not None
    row.enter(os.getpid(), time.monotonic_ns())
    for step in range(NUM_STEPS):
        row.finish(step)
    warmed_as = os.environ.get(_WARMED)
    was_standby = TAKEN_VARIABLE in os.environ
    answers.put(
        {
            "rank": local_rank,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "warmed_as": warmed_as,
            "was_standby": was_standby,
            "num_files": len(list(Path("/proc/self/fd").iterdir())),
        }
    )
    sys.exit(EXIT_CODE + local_rank)


def start(board: Board) -> list[dict[str, Any]]:
    """What the ranks of one start have found, with their exit codes."""
    context = get_context("forkserver")
    answers = context.SimpleQueue()
    board.clear_rows()
    ranks = [context.Process(target=rank, args=(i, answers)) for i in range(NUM_RANKS)]
    for process in ranks:
        process.start()
    found = sorted((answers.get() for _ in ranks), key=lambda answer: int(answer["rank"]))
    for process in ranks:
        process.join()
    return [
        {**answer, "exit_code": process.exitcode, "known_as": process.pid}
        for answer, process in zip(found, ranks, strict=True)
    ]


def wait_until_warm(files: Iterable[Path], used: set[int]) -> None:
    """Returns once each file names a process that lives, and was no rank yet."""

    def is_warm(file: Path) -> bool:
        pid = int((file.read_text() if file.exists() else "") or "0")
        return pid != 0 and pid not in used and kernel_state(pid) not in "XZ"

    wait_until(lambda: all(map(is_warm, files)))


def main() -> None:
    folder, num_starts, *words = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    board = Board.create()
    os.environ[BOARD_VARIABLE] = board.where
    kept = Standbys(
        module="tests.unit.launcher.ranks.warm_family",
        argv=[str(folder), *words],
        num_ranks=NUM_RANKS,
        board=board.where,
    )
    server = start_fork_server([], kept)
    files = [folder / str(i) for i in range(1 if "refuse" in words else NUM_RANKS)]
    used, killed = set[int](), list[int]()
    for number in range(num_starts):
        if number:
            wait_until_warm(files[len(killed) :], used)
        if number == 1 and "kill" in words:
            killed.append(int(files[0].read_text()))
            os.kill(killed[0], signal.SIGKILL)
            # One that dies only after it was taken is a rank that was killed.
            wait_until(lambda: kernel_state(killed[0]) in "XZ")
        found = start(board)
        used |= {each["pid"] for each in found}
        line = {"server": server, "ranks": found, "killed": killed}
        print(json.dumps(line), flush=True)
    if "wait" in words:
        wait_until_warm(files, used)
        print(json.dumps([int(file.read_text()) for file in files]), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
