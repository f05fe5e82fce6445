"""What stands for a machine on this one: namespaces, and the network that they are on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass


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
