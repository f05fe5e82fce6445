"""Where in the program something was asked for, and what was found wrong there."""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_ROOT = Path(__file__).parents[2]
_OWN = Path(__file__).parent


def place(depth: int = 1) -> str:
    """The caller: file, line and function of the last frames of ours outside this folder.

    Args:
        depth: how many of them, from the last one back.
    """
    frame: FrameType | None = sys._getframe(1)
    found: list[str] = []
    while frame is not None and len(found) < depth:
        path = _where(frame.f_code.co_filename)
        if path:
            found.append(f"{path}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found) or f"thread {threading.current_thread().name}"


@functools.cache
def _where(name: str) -> str:
    """A file of ours, from the root; empty for any other."""
    path = Path(name).resolve()
    is_ours = _ROOT in path.parents and _OWN not in path.parents and ".venv" not in path.parts
    return str(path.relative_to(_ROOT)) if is_ours else ""


def is_step_thread() -> bool:
    """Whether this thread does steps: the first one, or one that torch has made for backwards."""
    return threading.current_thread().name.startswith(("MainThread", "Dummy"))


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that would go wrong on a GPU, if not here then on another day.

    Args:
        kind: what, in a word or two.
        text: with what.
        where: who asked for it.
    """

    kind: str
    text: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text} ({self.where})"


class Record:
    """What has been seen of a process."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.planted: set[str] = set()
        """Kinds that a test makes itself, which each thread may notice in its own time."""
        self.waits: Counter[str] = Counter()
        """Times that the thread of the steps waited for the device, by place."""
        self.helpers: Counter[str] = Counter()
        """The same of other threads, which hold up nobody by that."""
        self.operations: Counter[str] = Counter()
        """What streams were given, by name of the operation."""
        self.by_place: Counter[tuple[str, str]] = Counter()
        """The same by place and operation, while `keeps_places` says so."""
        self.keeps_places = False

    def fault(self, kind: str, text: str) -> None:
        """Notes a fault of whoever is calling."""
        self.faults.append(Fault(kind, text, place()))

    def wait(self) -> None:
        """Notes that the caller waits for the device."""
        (self.waits if is_step_thread() else self.helpers)[place(depth=2)] += 1

    def operation(self, name: str) -> None:
        """Notes that a stream was given something."""
        self.operations[name] += 1
        if self.keeps_places:
            self.by_place[place(), name] += 1

    def check(self) -> None:
        """Raises AssertionError if there were faults that nobody has planted."""
        faults = {str(fault) for fault in self.faults if fault.kind not in self.planted}
        assert not faults, "\n".join(sorted(faults))
