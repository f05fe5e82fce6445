"""A launcher, its fork server and one worker; prints what the worker found.

python forked_family.py [wait] [fallback]      the worker stays; Python's own server
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
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


def main() -> None:
    if "fallback" in sys.argv:
        fork_server._can_fork = lambda: False
    LOADED.append("before the fork")
    server = fork_server.start_fork_server([])
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
