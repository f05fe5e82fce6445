"""A process that does what it is asked, one thing after the other, and ends with who asks."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from bundlerun.launcher.process import follow_parent

LIMIT_S = 360.0
"""Longest wait for an answer."""

Body = Callable[..., None]


class Silent(Exception):
    """No answer within the limit."""


class Helper:
    """The process, for as long as `with` lasts.

    Args:
        body: runs there, with the end of a pipe and `arguments`.
        arguments: plain values.
    """

    def __init__(self, body: Body, *arguments: object) -> None:
        # Not forked: it has nothing of this process, neither its memory nor its sockets.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(body, theirs, *arguments), name="bundlerun-scale", daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, *words: object) -> None:
        """Asks."""
        self._pipe.send(words)

    def answer(self, limit_s: float = LIMIT_S) -> Any:  # noqa: ANN401
        """What it says.

        Raises:
            Silent: nothing within `limit_s`, or it has ended.
        """
        try:
            if self._pipe.poll(limit_s):
                return self._pipe.recv()
        except EOFError:
            pass
        raise Silent(f"no answer within {limit_s:g} s")

    def ask(self, *words: object, limit_s: float = LIMIT_S) -> Any:  # noqa: ANN401
        """Asks, and waits for the answer; raises as `answer`."""
        self.send(*words)
        return self.answer(limit_s)

    def __enter__(self) -> Helper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run(body: Body, pipe: Connection, *arguments: object) -> None:
    follow_parent()
    # Ctrl-C goes to all; the first process ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError):
        body(pipe, *arguments)
