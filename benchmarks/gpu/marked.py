"""The processes of one case: found by a mark in their environment, and ended by number.

A case starts ranks and agents that start others, in sessions of their own. What a process was
started with stays readable, and its forks show the same.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

VARIABLE = "BENCHMARK_GPU_CASE"


def marked(mark: str) -> Iterator[int]:
    """The processes that were started with this mark, this one left out."""
    wanted = f"{VARIABLE}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) != os.getpid() and _has(folder, wanted):
            yield int(folder.name)


def end_marked(mark: str, limit_s: float) -> list[int]:
    """Ends all processes with this mark; those that are still there after the limit are returned.

    A process that holds a GPU may need a second or two to go.
    """
    deadline = time.monotonic() + limit_s
    while left := list(marked(mark)):
        for pid in left:
            _end(pid, mark, deadline)
        if time.monotonic() >= deadline:
            return list(marked(mark))
    return []


def _end(pid: int, mark: str, deadline: float) -> None:
    """Kills one process and waits for its end."""
    try:
        # Of the process, not of its number, which may be another's by now.
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _has(Path(f"/proc/{pid}"), f"{VARIABLE}={mark}".encode()):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(descriptor)


def _has(process: Path, wanted: bytes) -> bool:
    try:
        return wanted in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False
