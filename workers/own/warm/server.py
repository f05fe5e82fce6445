"""A process that keeps what a rank has imported, over the starts of its agent's ranks.

a connection    [1] says what the program is    answered with a descriptor of its process
[2] closes: whoever stood for   the program is killed
the program is gone
a program       [3] ends                        whoever stands for it is told how
the agent       [4] ends                        the server ends, and its programs with it
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO, TextIOWrapper
from typing import Any, NoReturn

from bundlerun.launcher.process import AGENT_VARIABLE, die_with_parent, leave
from bundlerun.workers.own.warm.start import PASSED_ON, Program, is_own

_PACKET_BYTES = 1 << 18
_STANDARD = 3
"""Input, output and errors."""


def fork_server(address: bytes, agent: int, program: Program) -> None:
    """Forks the server from this process, which has imported what is to be kept, and no thread.

    Args:
        address: where it can be reached.
        agent: the process that it ends with.
        program: what its forks do.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with listener:
        try:
            listener.bind(address)
            listener.listen()
            followed = os.pidfd_open(agent)
        except OSError:  # another has it; the next start will be as this one
            return
        child = os.fork()
        if child == 0:
            _serve(listener, followed, program)
        os.waitpid(child, 0)
        os.close(followed)


def _serve(listener: socket.socket, followed: int, program: Program) -> NoReturn:
    """In the child: a session of its own, no parent, and nothing that others wait for."""
    try:
        os.setsid()  # the agent ends whole groups
        if os.fork():
            os._exit(0)
        _keep_only(listener.fileno(), followed)
        _Server(listener, followed, program).run()
    finally:
        os._exit(0)


def _keep_only(*descriptors: int) -> None:
    """Closes all others: whoever reads what this process has printed waits for that."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(_STANDARD):
        os.dup2(null, standard)
    last = _STANDARD
    for descriptor in sorted(descriptors):
        os.closerange(last, descriptor)
        last = descriptor + 1
    os.closerange(last, os.sysconf("SC_OPEN_MAX"))


@dataclass(slots=True)
class _Child:
    pid: int
    pidfd: int


class _Server:
    """The loop.

    Args:
        listener: where requests come in.
        followed: of the agent.
        program: what a fork does.
    """

    def __init__(self, listener: socket.socket, followed: int, program: Program) -> None:
        self._listener = listener
        self._followed = followed
        self._program = program
        self._links: dict[socket.socket, _Child] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serves until the agent ends."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._followed, selectors.EVENT_READ, self._leave)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _leave(self) -> None:
        # [4] The programs end with this process.
        os._exit(0)

    def _accept(self) -> None:
        # [1]
        with suppress(OSError, ValueError, KeyError):
            link, _ = self._listener.accept()
            if not is_own(link):
                link.close()
                return
            text, fds, _, _ = socket.recv_fds(link, _PACKET_BYTES, _STANDARD)
            try:
                child = self._forked(json.loads(text), fds)
            finally:
                for fd in fds:
                    os.close(fd)
            self._links[link] = child
            self._on(link, lambda: self._abandoned(link))
            self._on(child.pidfd, lambda: self._ended(link))
            socket.send_fds(link, [b"it is there"], [child.pidfd])

    def _on(self, file: socket.socket | int, act: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, act)

    def _forked(self, request: Mapping[str, Any], fds: list[int]) -> _Child:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(server, request, fds, self._program)
        return _Child(pid, os.pidfd_open(pid))

    def _abandoned(self, link: socket.socket) -> None:
        # [2]
        self._selector.unregister(link)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._links[link].pidfd, signal.SIGKILL)

    def _ended(self, link: socket.socket) -> None:
        # [3]
        child = self._links.pop(link)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        _, status = os.waitpid(child.pid, 0)
        with suppress(KeyError):
            self._selector.unregister(link)
        with link, suppress(OSError):
            link.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(server: int, request: Mapping[str, Any], fds: list[int], program: Program) -> NoReturn:
    """Makes this fork the process that its agent has started."""
    try:
        die_with_parent(server)
        for standard, fd in enumerate(fds):
            os.dup2(fd, standard)
        os.closerange(_STANDARD, os.sysconf("SC_OPEN_MAX"))
        _open_streams()
        _hear_again()
        os.environ.clear()
        os.environ.update(request["environ"])
        os.environ[AGENT_VARIABLE] = f"{os.getpid()}:{request['agent']}"
        os.chdir(request["folder"])
        with suppress(OSError):
            os.sched_setaffinity(0, request["cpus"])
        file, *arguments = request["argv"]
        code = program(file, arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code)


def _hear_again() -> None:
    """Has signals do what they do in a new Python."""
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _open_streams() -> None:
    """Those of this process, which write at once, as torchrun's ranks do (`python -u`)."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc] # noqa: SIM115
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = FileIO(fd, "w", closefd=False)
        stream = TextIOWrapper(raw, errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
