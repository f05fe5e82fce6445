"""What stands for a machine on this one: namespaces, and the network that they are on."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def die_with_parent() -> None:
    """Has the kernel end this process with the one that started it."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)


def wait_for(what: str, check: Callable[[], object], limit_s: float, poll_s: float = 0.05) -> None:
    """Waits until `check` holds; raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(poll_s)


@dataclass(slots=True)
class Namespaces:
    """A booted node: what holds its namespaces, and its PID 1 as this machine sees it."""

    holder: subprocess.Popen[bytes]
    init: int

    def enter(self, words: Sequence[str], *, only_network: bool = False) -> list[str]:
        """The command line that runs `words` in there."""
        flags = ["-n"] if only_network else ["-m", "-u", "-i", "-n", "-p", "-r"]
        return ["nsenter", "-t", str(self.init), *flags, "--", *words]


def free_subnet() -> str:
    """A network of 254 addresses that this machine has no route to."""
    used = subprocess.run(
        "ip -o -4 addr show; ip -4 route show",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    first = os.getpid() % 200
    for i in [*range(first, 200), *range(first)]:
        if not re.search(rf"(^|[^0-9.])10\.78\.{i}\.", used):
            return f"10.78.{i}"
    raise RuntimeError("no free network 10.78.x")
