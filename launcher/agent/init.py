"""As process 1 of a container this program is its init: a small parent that hands signals on.

    process 1    no torch, no threads: hands signals on, collects processes that lost their parent
      `-- the program itself, in a process group of its own, which has the terminal

The kernel drops a signal to process 1 that has no handler yet, and gives it every orphan of the
container to wait for. A child that is not process 1 knows neither trouble.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

HANDED_ON = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)


def stand_before() -> int | None:
    """Where this is process 1, continues as its child; call it before any thread exists.

    Returns:
        In the child, and where this is not process 1: None. In process 1, once the child has
        ended: its exit code.
    """
    if os.getpid() != 1:
        return None
    heard = HANDED_ON | {signal.SIGCHLD}
    # Blocked signals wait, where process 1 would have lost them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    while True:
        number = signal.sigwait(heard)
        if number == signal.SIGCHLD:
            code = _collect(child)
            if code is not None:
                return code
        else:
            os.kill(child, number)


def _take_terminal() -> None:
    """A process group of its own, so that Ctrl-C comes from the terminal only, and not twice."""
    os.setpgid(0, 0)
    # A background process that takes the terminal would be stopped by this signal.
    ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with suppress(OSError):  # no terminal
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, ignored)


def _collect(child: int) -> int | None:
    """Waits for all that have ended; the exit code of `child`, once it is among them."""
    found = None
    while True:
        try:
            # Any process: orphans of the container would stay zombies.
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            # As shells have it: 128 and the number of the signal.
            found = code if code >= 0 else 128 - code
