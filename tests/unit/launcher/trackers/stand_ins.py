"""Trackers and deaths for tests: a tracker in memory, and a process that dies at any line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from bundlerun.launcher.trackers.interface import Ending, Row, TrackerRun
from bundlerun.launcher.trackers.tensorboard_files import without

Pair = tuple[str, int]


class Death(BaseException):
    """The process is gone: nothing of it goes on but what is on disk, or in the tracker."""


@dataclass
class Store:
    """What a service keeps, whatever process dies. Every scalar is a line of its own."""

    can_take_back: bool
    is_late: bool = False
    """What was told waits in memory: a death takes it along."""
    lines: dict[str, list[tuple[str, int, float, int]]] = field(default_factory=dict)
    late: list[tuple[str, int, float, int]] = field(default_factory=list)
    last_key: str = ""
    replaced: list[str] = field(default_factory=list)

    def opened(self, run: TrackerRun) -> StandIn:
        self.late.clear()
        self.last_key = run.key
        self.lines.setdefault(run.key, [])
        return (_TakesBack if self.can_take_back else StandIn)(self, run.key)

    def shown(self) -> list[tuple[str, int, float]]:
        return sorted((n, s, v) for n, s, v, _ in self.lines.get(self.last_key, []))


class StandIn:
    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._lines = store.lines[key]
        self._key = key
        self.keeps_told = not store.is_late

    def lacking(self, rows: Sequence[Row]) -> list[Row]:
        if self._store.is_late:
            last = max((number for *_, number in self._lines), default=-1)
            return [row for row in rows if row.number > last]
        return without(rows, {(name, step) for name, step, *_ in self._lines})

    def tell(self, rows: Sequence[Row]) -> None:
        for row in rows:
            late = [(name, row.step, value, row.number) for name, value in row.scalars.items()]
            if self._store.is_late:
                self._store.late += late
                if len(self._store.late) > 9:
                    self._flush()
                continue
            for line in late:
                self._lines.append(line)

    def _flush(self) -> None:
        # A row is one write of the other process.
        lines, self._store.late = self._store.late, []
        self._lines += lines

    def close(self, ending: Ending) -> None:
        self._flush()
        if ending == "replaced":
            self._store.replaced.append(self._key)


class _TakesBack(StandIn):
    def take_back(self, step: int) -> None:
        self._lines[:] = [line for line in self._lines if line[1] < step]


def dies_at(line: int, action: Callable[[], Any], part: str = "trackers") -> tuple[bool, Any]:
    """Runs `action`; the process dies before the `line`th line of our code of it.

    Returns:
        Whether it died; what `action` returned.
    """
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if part not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Death
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return False, action()
    except Death:
        return True, None
    finally:
        sys.settrace(before)
