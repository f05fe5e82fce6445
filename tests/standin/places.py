"""Where in the program something was asked for, and what was found wrong there."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_ROOT = Path(__file__).parents[2]
_OWN = Path(__file__).parent


def place() -> str:
    """The caller's file, line and function: the last frame of ours outside this folder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _OWN not in path.parents and _is_ours(path):
            where = path.resolve().relative_to(_ROOT)
            return f"{where}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return f"thread {threading.current_thread().name}"


def _is_ours(path: Path) -> bool:
    path = path.resolve()
    return _ROOT in path.parents and ".venv" not in path.parts


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
        self.waits: Counter[str] = Counter()
        """Times that the process waited for the device, by place."""
        self.operations: Counter[str] = Counter()
        """What streams were given, by name of the operation."""
        self.by_place: Counter[tuple[str, str]] = Counter()
        """The same by place and operation, while `keeps_places` says so."""
        self.keeps_places = False

    def fault(self, kind: str, text: str) -> None:
        """Notes a fault of whoever is calling."""
        self.faults.append(Fault(kind, text, place()))

    def wait(self) -> None:
        """Notes that the process waits for the device."""
        self.waits[place()] += 1

    def operation(self, name: str) -> None:
        """Notes that a stream was given something."""
        self.operations[name] += 1
        if self.keeps_places:
            self.by_place[place(), name] += 1

    def check(self) -> None:
        """Raises AssertionError if there were faults."""
        assert not self.faults, "\n".join(sorted({str(fault) for fault in self.faults}))
