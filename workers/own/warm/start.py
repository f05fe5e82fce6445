"""A rank of torchrun, or of a launcher that is built on it, that need not import torch again.

    first start    rank 0 of a node imports torch and what protect needs, forks a server that keeps
                   that (`server`), and goes on as the program; the others only do the latter
    later ones     the process that the agent has started asks the server for a fork, which is the
                   program; it stands for that: hands signals on, and ends as the fork ends

                   agent (torchrun)                     the server ends with it
                     |-- rank 0, now     - - - asks - - -  server
                     |                                       |
                     `   stands for                          `-- the program, with the rank's
                                                                 environment, folder and output

No torch here: that is what a later start spares. Where the server is gone, or cannot be reached, a
start is as the first one was.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from bundlerun.launcher.process import follow_parent, started_at

Program = Callable[[str, Sequence[str]], int]
"""Runs a file with its arguments as `__main__`; returns its exit code."""

PASSED_ON = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
ANSWER_BYTES = 64
_PRELOAD = "--preload="
_CREDENTIALS = struct.Struct("3i")
_MOST_BYTES = 1 << 17
"""Of a request, most of which is the environment; sockets take as much."""


def main(argv: Sequence[str]) -> NoReturn:
    """Runs a program as this rank and ends as it ends.

    Args:
        argv: `--preload=`, modules that the server is to have, too; the program, a file; its
            arguments.
    """
    names: list[str] = []
    if argv and argv[0].startswith(_PRELOAD):
        names = [name for name in argv[0][len(_PRELOAD) :].split(",") if name]
        argv = argv[1:]
    if not argv or argv[0].startswith("-"):
        usage = "python -m bundlerun.warm [--preload=MODULE,MODULE] FILE.py ..."
        print(f"error: give the program: {usage}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    begin(argv, lambda: _loaded(names))


def begin(argv: Sequence[str], load: Callable[[], Program]) -> NoReturn:
    """The same, with what `load` gives; it is called where this process runs the program itself."""
    address = address_of(os.getppid())
    server = _reached(address)
    if server is not None:
        with server:
            _stand_for(server, argv)
    program = load()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        from bundlerun.workers.own.warm.server import fork_server

        fork_server(address, os.getppid(), program)
    raise SystemExit(program(argv[0], argv[1:]))


def _loaded(more: Sequence[str]) -> Program:
    from bundlerun.workers.own.warm.loaded import load

    return load(more)


def address_of(agent: int) -> bytes:
    """Of the server for the ranks of an agent, which no other process of this machine has."""
    return f"\0bundlerun-warm-{os.getuid()}-{agent}-{started_at(agent) or 0}".encode()


def is_own(peer: socket.socket) -> bool:
    """Whether the other side of a connection is a process of the same user."""
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] == os.getuid())


def _reached(address: bytes) -> socket.socket | None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with suppress(OSError):
        server.connect(address)
        if is_own(server):
            return server
    server.close()
    return None


def _stand_for(server: socket.socket, argv: Sequence[str]) -> None:
    """Stands for a fork of the server until its end, which is this one's; returns without one."""
    request = json.dumps(
        {
            "argv": list(argv),
            "environ": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109 (text)
            "agent": os.getppid(),
            "cpus": sorted(os.sched_getaffinity(0)),
        }
    ).encode("utf-8", "surrogateescape")
    if len(request) > _MOST_BYTES:
        return
    # Heard from here on: who ends this process means the program.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        socket.send_fds(server, [request], [0, 1, 2])
        _, fds, _, _ = socket.recv_fds(server, ANSWER_BYTES, 1)
    except OSError:
        fds = []
    if not fds:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    follow_parent()
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: _pass_on(fds[0], number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    _end_as(server.recv(ANSWER_BYTES))


def _pass_on(program: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        signal.pidfd_send_signal(program, number)


def _end_as(answer: bytes) -> NoReturn:
    """Ends as the program has ended; without an answer the server was killed, and it with it."""
    code = int(answer) if answer else -signal.SIGKILL
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left one where it may
    with suppress(OSError, ValueError):  # SIGKILL has no handler
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    signal.pause()
    os._exit(128 - code)
