"""A fork server that has everything loaded, because it is forked from a process that has.

    launcher  imports torch, torchvision, the worker's module     once, 3-5 s
      |-- fork server        fork(): has them too                 a few ms
      |     |-- worker 0     fork() for each start of the workers
      |     `-- worker 1
      `-- torch's elastic agent (this process), start method "forkserver"

Python's own fork server is a fresh interpreter that imports its preloads again, after the launcher
has done so. Only the start differs here; the server loop and the protocol are Python's. Should the
server be killed, its workers end with it, and Python starts one of its own for the next ones.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver, resource_tracker, util
from typing import Any

from bundlerun.launcher.process import die_with_parent, hold_children, parent_of
from bundlerun.launcher.ranks.board import BOARD_VARIABLE, Board
from bundlerun.launcher.ranks.rank_signals import kept_from_children
from bundlerun.launcher.ranks.standby import Standbys
from bundlerun.launcher.ranks.warm_server import WarmServer

# The standard library's type stubs leave these out.
_connection: Any = connection
_util: Any = util
_forkserver: Any = forkserver
_STATE = ("_forkserver_address", "_forkserver_alive_fd", "_forkserver_pid")
_GUARD = "bundlerun.launcher.ranks.guarded"
KILLED_S = 1.0
"""Longest time for which a kill is waited for; a process that waits for a disk takes it later."""


def start_fork_server(preload: Sequence[str], kept: Standbys | None = None) -> int:
    """Starts the fork server of this process; call it before any thread exists.

    Args:
        preload: modules that the workers need; this process has imported them.
        kept: the standbys that it is to keep, where `can_keep_standbys`; None: none.

    Returns:
        The server's process id.
    """
    # What a whole group is sent (timeout, a terminal) is the launcher's to follow.
    with kept_from_children():
        resource_tracker.ensure_running()  # unblocks what it has not blocked
    with kept_from_children():
        forkserver.set_forkserver_preload([_GUARD, *preload])
        return _fork(kept) if can_keep_standbys() else _ask_python()


def _ask_python() -> int:
    forkserver.ensure_running()
    return int(_forkserver._forkserver._forkserver_pid)


def _fork(kept: Standbys | None) -> int:
    address = _connection.arbitrary_address("AF_UNIX")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        if not _util.is_abstract_socket_namespace(address):
            os.chmod(address, 0o600)  # noqa: PTH101 (an abstract address is no path)
        listener.listen()
        alive_r, alive_w = os.pipe()
        launcher = os.getpid()
        pid = os.fork()
        if pid == 0:
            # The server ends when nobody else can write to this pipe; it must not be one who can.
            os.close(alive_w)
            _serve(listener.detach(), alive_r, launcher, kept)
        os.close(alive_r)
    # From here on multiprocessing takes it for a server that it has started itself.
    for name, value in zip(_STATE, (address, alive_w, pid), strict=True):
        setattr(_forkserver._forkserver, name, value)
    return pid


def can_keep_standbys() -> bool:
    """Whether Python's fork server keeps its state as this module knows it (not in 3.14)."""
    server = getattr(forkserver, "_forkserver", None)
    return all(hasattr(server, name) for name in _STATE) and not hasattr(
        server, "_forkserver_authkey"
    )


def _serve(listener_fd: int, alive_r: int, launcher: int, kept: Standbys | None) -> None:
    """Never returns; whatever ends the loop must not run the launcher's own exit code."""
    try:
        die_with_parent(launcher)
        hold_children()
        board = None if kept is None else Board.open({BOARD_VARIABLE: kept.board})
        if kept is None or board is None:
            forkserver.main(listener_fd, alive_r, [])
        else:
            with socket.socket(socket.AF_UNIX, fileno=listener_fd) as listener:
                WarmServer(listener, alive_r, kept, board).run()
    finally:
        os._exit(0)


def kill_fork_server() -> None:
    """Ends the fork server of this process, with all it has forked, before this process continues.

    A worker that torch was about to start, when its agent left, would else run on by itself, and
    Python waits for it at the end; or it would complain of semaphores that its agent took along.
    """
    pid = getattr(_forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILLED_S
    while not is_server_gone() and time.monotonic() < deadline:
        time.sleep(0.001)


def is_server_gone() -> bool:
    """Whether the fork server of this process has ended, and was not replaced yet."""
    pid = getattr(_forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return False
    try:
        # WNOWAIT: only a look; the exit code stays for Python to collect.
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def die_with_server(launcher: int) -> None:
    """`die_with_parent` for a worker; its parent is some fork server of `launcher`."""
    _let_go_of_server()
    server = os.getppid()
    die_with_parent(server)
    if parent_of(server) != launcher:  # the server was gone already, and somebody else is parent
        os._exit(128 + signal.SIGKILL)


def _let_go_of_server() -> None:
    """Closes the pipe by which this process, forked by Python's own server, keeps that running.

    Then the server ends with the launcher alone, and not only once all workers have ended.
    """
    server = _forkserver._forkserver
    alive_fd = getattr(server, "_forkserver_alive_fd", None)
    if alive_fd is not None:
        os.close(alive_fd)
        server._forkserver_alive_fd = None
