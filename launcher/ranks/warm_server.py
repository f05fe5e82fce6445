"""A fork server that keeps standbys: it does what Python's own does, in the same protocol.

    the agent asks for a rank     a standby of that rank is ready: it gets the request
                                  none is: a process is forked for it, as always
    all ranks were asked for      missing standbys are forked, one after the other
    a process ends                whoever asked for it gets its exit code

The agent starts the ranks of a node in their order, so the n-th request of a start is rank n.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, reduction, util
from typing import Any, NoReturn

from bundlerun.launcher.process import kernel_state
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.standby import (
    MOST_FDS,
    READY,
    Standbys,
    wait_for_request,
    warm,
)

# The standard library's type stubs leave these out.
_forkserver: Any = forkserver
_reduction: Any = reduction
_util: Any = util


@dataclass(slots=True)
class _Child:
    """A process of this server.

    status_fd: where its exit code is wanted; -1 where nobody has asked for it.
    """

    pid: int
    pidfd: int
    status_fd: int = -1


@dataclass(slots=True)
class _Standby:
    """link: to it; it tells there that it is ready, and is told what makes it a rank."""

    child: _Child
    link: socket.socket
    is_ready: bool = False


class WarmServer:
    """The server, in a process of its own.

    Args:
        listener: where requests come in.
        alive_fd: can be read when nobody is left who would ask.
        kept: what it is to keep.
        board: the agent's page.
    """

    def __init__(
        self, listener: socket.socket, alive_fd: int, kept: Standbys, board: Board
    ) -> None:
        self._listener = listener
        self._alive_fd = alive_fd
        self._kept = kept
        self._board = board
        self._selector = selectors.DefaultSelector()
        self._children: set[int] = set()
        """All open file descriptors that are about children, which no other child may have."""
        self._standbys: dict[int, _Standby] = {}
        self._start = board.num_starts
        self._num_asked = 0
        self._done_without: set[int] = set()
        self._is_wanted = True

    def run(self) -> None:
        """Serves until nobody is left who would ask."""
        _util._close_stdin()
        _forkserver._forkserver._forkserver_address = self._listener.getsockname()
        self._on(self._listener, self._accept)
        self._on(self._alive_fd, self._leave)
        while self._is_wanted:
            for key, _ in self._selector.select():
                key.data()

    def _on(self, file: socket.socket | int, act: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, act)

    def _leave(self) -> None:
        self._is_wanted = False

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except ConnectionAbortedError:
            return
        with client:
            child_r, status_fd, *inherited = _reduction.recvfds(client, MOST_FDS)
        child = self._taken(self._next_rank(), [child_r, *inherited])
        if child is None:
            child = self._forked(lambda: _serve_one(child_r, inherited, [status_fd]))
        child.status_fd = status_fd
        self._children.add(status_fd)
        with suppress(BrokenPipeError):  # whoever asked is gone
            _forkserver.write_signed(status_fd, child.pid)
        for fd in (child_r, *inherited):
            os.close(fd)
        self._fill()

    def _next_rank(self) -> int:
        if self._start != self._board.num_starts:
            self._start = self._board.num_starts
            self._num_asked = 0
            self._done_without.clear()
        self._num_asked += 1
        return self._num_asked - 1

    def _taken(self, local_rank: int, fds: list[int]) -> _Child | None:
        """Gives a request to the standby of a rank; None where it has none that could take it."""
        standby = self._standbys.get(local_rank)
        # One that is stopped would never become a rank.
        if standby is None or not standby.is_ready or kernel_state(standby.child.pid) not in "RSD":
            return None
        self._forget(local_rank)
        with standby.link:
            try:
                socket.send_fds(standby.link, [READY], fds)
            except OSError:
                return None
        return standby.child

    def _forked(self, act: Callable[[], int]) -> _Child:
        """A new process that does `act`, and ends with its result."""
        pid = os.fork()
        if pid == 0:
            self._run_child(act)
        pidfd = os.pidfd_open(pid)
        self._children.add(pidfd)
        child = _Child(pid, pidfd)
        self._on(pidfd, lambda: self._reap(child))
        return child

    def _run_child(self, act: Callable[[], int]) -> NoReturn:
        code = 1
        try:
            self._selector.close()
            self._listener.close()
            for standby in self._standbys.values():
                standby.link.close()
            for fd in (self._alive_fd, *self._children):
                os.close(fd)
            code = act()
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _reap(self, child: _Child) -> None:
        """Passes on how a process has ended."""
        _, status = os.waitpid(child.pid, 0)
        self._selector.unregister(child.pidfd)
        for fd in (child.pidfd, child.status_fd):
            if fd >= 0:
                self._children.remove(fd)
        os.close(child.pidfd)
        if child.status_fd >= 0:
            with suppress(BrokenPipeError):  # whoever asked is gone
                _forkserver.write_signed(child.status_fd, os.waitstatus_to_exitcode(status))
            os.close(child.status_fd)
            return
        for local_rank, standby in list(self._standbys.items()):
            if standby.child is child:
                self._forget(local_rank)
                standby.link.close()
                # It could not warm up: not in this start either, then.
                if not standby.is_ready:
                    self._done_without.add(local_rank)
        self._fill()

    # --- standbys

    def _fill(self) -> None:
        """Forks the next standby that is missing; one at a time warms up."""
        if self._num_asked < self._kept.num_ranks:
            return
        if not all(standby.is_ready for standby in self._standbys.values()):
            return
        have = self._standbys.keys() | self._done_without
        missing = next((rank for rank in range(self._kept.num_ranks) if rank not in have), None)
        if missing is not None:
            self._stand(missing)

    def _stand(self, local_rank: int) -> None:
        ours, theirs = socket.socketpair()
        child = self._forked(lambda: self._stand_by(local_rank, ours, theirs))
        theirs.close()
        self._standbys[local_rank] = _Standby(child, ours)
        self._on(ours, lambda: self._hear(local_rank))

    def _stand_by(self, local_rank: int, ours: socket.socket, theirs: socket.socket) -> int:
        """The life of a standby, up to its end as a rank."""
        ours.close()
        if not warm(self._kept, local_rank):
            return 0
        fds = wait_for_request(theirs)
        return _serve_one(fds[0], fds[1:], []) if fds else 0

    def _hear(self, local_rank: int) -> None:
        standby = self._standbys[local_rank]
        try:
            standby.is_ready = standby.link.recv(len(READY)) == READY
        except OSError:
            standby.is_ready = False
        # It says one word; what comes after is its end, which its pidfd tells.
        self._selector.unregister(standby.link)
        self._fill()

    def _forget(self, local_rank: int) -> None:
        standby = self._standbys.pop(local_rank)
        with suppress(KeyError):
            self._selector.unregister(standby.link)


def _serve_one(child_r: int, inherited: list[int], unused: list[int]) -> int:
    """Becomes the process that was asked for; its exit code."""
    return int(_forkserver._serve_one(child_r, inherited, unused, {}))
