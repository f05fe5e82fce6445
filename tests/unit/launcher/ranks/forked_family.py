"""A launcher, its fork server and one worker; prints what the worker found.

python forked_family.py [wait] [fallback]      the worker stays; Python's own server
python forked_family.py leave [fallback]       the launcher leaves while the worker has not begun
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context, reduction
from multiprocessing.queues import SimpleQueue
from multiprocessing.resource_sharer import DupFd
from multiprocessing.synchronize import Event

from bundlerun.launcher.ranks import fork_server

LOADED: list[str] = []
"""Filled by the launcher only after the import: a process that has it was forked from there."""


def work(answers: SimpleQueue[dict[str, object]], go: Event, launcher: int) -> None:
    fork_server.die_with_server(launcher)
    go.wait(10)
    answers.put({"loaded": list(LOADED), "parent": os.getppid(), "pid": os.getpid()})
    if "wait" in sys.argv:
        time.sleep(600)


class Slow:
    """Makes the worker wait, and then fail, while it reads what it is to run."""

    def __init__(self, up: int, go: int) -> None:
        self._pipes = up, go

    def __reduce__(self) -> tuple[Callable[..., None], tuple[DupFd, DupFd]]:
        up, go = map(reduction.DupFd, self._pipes)
        return arrive_late, (up, go)


def arrive_late(up: DupFd, go: DupFd) -> None:
    os.write(up.detach(), os.getpid().to_bytes(4, "little"))
    os.read(go.detach(), 1)
    raise FileNotFoundError("a semaphore of the launcher")


def leave() -> None:
    """Kills the fork server, then lets the worker go on, which prints where it still can."""
    (up, tell), (wait, go) = os.pipe(), os.pipe()
    worker = get_context("forkserver").Process(target=print, args=(Slow(tell, wait),))
    worker.start()
    late = int.from_bytes(os.read(up, 4), "little")
    fork_server.kill_fork_server()
    os.write(go, b"x")
    print(late, flush=True)


def main() -> None:
    if "fallback" in sys.argv:
        fork_server.can_keep_standbys = lambda: False
    LOADED.append("before the fork")
    server = fork_server.start_fork_server([])
    if "leave" in sys.argv:
        leave()
        return
    context = get_context("forkserver")
    answers, go = context.SimpleQueue(), context.Event()
    worker = context.Process(target=work, args=(answers, go, os.getpid()))
    worker.start()
    go.set()
    found = answers.get()
    print(json.dumps({**found, "server": server}), flush=True)
    worker.join()
    print(worker.exitcode, flush=True)


if __name__ == "__main__":
    main()
