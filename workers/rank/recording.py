"""What a rank does in one step, from when to when.

On a GPU what the rank launches is marked in its stream, and nobody waits for the marks: when the
step is over, a thread of its own reads when they were reached. The last mark tells what the clock
of the GPU differs by from that of the rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from bundlerun.launcher.layout.schedule import Action
from bundlerun.launcher.run_folder.measured import Span
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event

_OF_A_PASS = frozenset({"data", "forward", "backward", "send", "receive"})
"""Phases of the rank's own thread that belong to a pass of a micro-batch."""


class _Marks(NamedTuple):
    phase: str
    action: str
    ahead: int
    begin: Event
    end: Event


class Recording:
    """One step; entered from several threads, each with phases of its own.

    Args:
        step: its number.
        device: of the rank.
        clock: monotonic, seconds, the same for all processes of the machine.
    """

    def __init__(
        self, step: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.step = step
        self.action: tuple[Action, int] | None = None
        """The pass that the rank is at, and the number of its step."""
        self._device = device
        self._clock = clock
        self._spans: list[Span] = []
        self._marks: list[_Marks] = []
        self._first = self.mark() if door.is_gpu(device) else None
        self._last: Event | None = None

    def of(
        self, phase: str, timed: AbstractContextManager[None], is_launched: bool
    ) -> AbstractContextManager[None]:
        """`timed`, whose time is recorded, too.

        Args:
            phase: what is done.
            is_launched: whether a GPU does it.
        """
        if is_launched and self._first is not None:
            return _Marked(self, phase, timed)
        return _Recorded(self, phase, timed)

    def _label(self, phase: str) -> tuple[str, int]:
        if self.action is None or phase not in _OF_A_PASS:
            return "", 0
        action, step = self.action
        return str(action), step - self.step

    def mark(self) -> Event:
        """A mark here in the stream of this thread."""
        made = door.timer(self._device)
        made.record(door.current_stream(self._device))
        return made

    def now(self) -> float:
        """By the clock."""
        return self._clock()

    def add(self, phase: str, begin_s: float, end_s: float) -> None:
        """Something was done."""
        self._spans.append(Span(phase, begin_s, end_s, *self._label(phase)))

    def add_marks(self, phase: str, begin: Event, end: Event) -> None:
        """A GPU was given something between two marks."""
        self._marks.append(_Marks(phase, *self._label(phase), begin, end))

    def close(self) -> None:
        """The step is over."""
        if self._first is not None:
            self._last = self.mark()

    def spans(self) -> tuple[Span, ...]:
        """All that was done, by its begin; waits for a GPU: not for the rank's own thread."""
        found = list(self._spans)
        if self._first is not None and self._last is not None:
            door.enter(self._device)
            self._last.synchronize()
            # The mark was reached just now: from here back by the clock of the GPU.
            origin_s = self._clock() - self._first.elapsed_time(self._last) / 1000
            for phase, action, ahead, begin, end in self._marks:
                begin_s = origin_s + self._first.elapsed_time(begin) / 1000
                found.append(
                    Span(phase, begin_s, begin_s + begin.elapsed_time(end) / 1000, action, ahead)
                )
        return tuple(sorted(found, key=lambda span: span.begin_s))


class _Recorded:
    __slots__ = ("_begin_s", "_phase", "_recording", "_timed")

    def __init__(
        self, recording: Recording, phase: str, timed: AbstractContextManager[None]
    ) -> None:
        self._recording = recording
        self._phase = phase
        self._timed = timed
        self._begin_s = 0.0

    def __enter__(self) -> None:
        self._timed.__enter__()
        self._begin_s = self._recording.now()

    def __exit__(self, *error: object) -> None:
        self._recording.add(self._phase, self._begin_s, self._recording.now())
        self._timed.__exit__(*error)  # type: ignore[arg-type] # as they came


class _Marked:
    __slots__ = ("_mark", "_phase", "_recording", "_timed")

    def __init__(
        self, recording: Recording, phase: str, timed: AbstractContextManager[None]
    ) -> None:
        self._recording = recording
        self._phase = phase
        self._timed = timed

    def __enter__(self) -> None:
        self._timed.__enter__()
        self._mark = self._recording.mark()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # As the meters: a GPU that has failed takes no more marks.
        if kind is None:
            self._recording.add_marks(self._phase, self._mark, self._recording.mark())
        self._timed.__exit__(kind, *rest)  # type: ignore[arg-type] # as they came
