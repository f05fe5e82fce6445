"""Programs that were started, and how: what is used of `subprocess.Popen`, which is one way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol


class Program(Protocol):
    """What is needed of a process that was started: as `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None:
        """The exit code; None: it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""

    def send_signal(self, sig: int, /) -> None:
        """Sends it a signal, if it runs."""

    def kill(self) -> None:
        """Ends it."""


class Starter(Protocol):
    """How programs are started: as `subprocess.Popen`."""

    def __call__(
        self,
        args: Sequence[str],
        /,
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        cwd: Path,
        start_new_session: bool,
    ) -> Program:
        """Starts the words as a program of a session of its own."""
