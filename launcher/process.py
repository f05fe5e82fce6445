"""What the kernel knows and does about processes: who is whose parent, who ends with whom."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1

AGENT_VARIABLE = "BUNDLERUN_AGENT_OF"
"""`RANK:AGENT`, process ids: who has started a rank that is another process's child."""

# The standard library's type stubs leave these out.
_threading: Any = threading
_atexit: Any = atexit


@functools.cache
def boot_id() -> str:
    """What no other machine has, nor this one after its next start; empty where it is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def die_with_parent(parent: int) -> None:
    """Lets the kernel kill this process as soon as the process `parent`, which forked it, is gone.

    Python's fork server and torch's workers notice only an orderly end: the former waits until the
    workers are gone too, the latter get a SIGINT, which a rank that waits in gloo never sees.
    """
    follow_parent()
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(128 + signal.SIGKILL)


def follow_parent() -> None:
    """Lets the kernel kill this process when its present parent ends, whoever that is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def hold_children() -> None:
    """Makes all children that this process forks from now on end with it, from the very start.

    Children of the children are not covered.
    """
    parent = os.getpid()
    is_child = False

    def hold() -> None:
        nonlocal is_child
        if not is_child:
            is_child = True
            die_with_parent(parent)

    os.register_at_fork(after_in_child=hold)


def leave(exit_code: int) -> NoReturn:
    """Ends this process in good order, but does not take its interpreter apart.

    Python ends a daemon thread when it comes back from C++, which torch's code does not survive:
    "terminate called without an active exception", and an abort after a good end. Processes that
    Python's own multiprocessing starts end in this way, too.
    """
    _threading._shutdown()
    _atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def parent_of(pid: int) -> int:
    """The process id of the parent of `pid`; 0 where there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def agent_pid() -> int:
    """Who has started this rank: its parent, or the process that its parent stands for."""
    rank, _, agent = os.environ.get(AGENT_VARIABLE, "").partition(":")
    return int(agent) if rank == str(os.getpid()) else os.getppid()


def started_at(pid: int) -> int | None:
    """When a process began, clock ticks since the start of the machine; None: it has ended."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def kernel_state(pid: int) -> str:
    """The kernel's letter for the state of a process: R, S, D, T (stopped), Z (dead); X: gone."""
    fields = _stat(pid)
    return fields[0] if fields else "X"


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # After the last bracket: the name of the program may have spaces and brackets in it.
    return text.rpartition(")")[2].split()
