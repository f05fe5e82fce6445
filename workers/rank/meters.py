"""Where the time goes: seconds per phase, on one rank.

On a GPU most work is only launched by the rank. What it computes is timed on the GPU itself,
between two marks in its stream; what launching that takes the rank is a phase of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final

import torch

from bundlerun.launcher.layout.schedule import Action
from bundlerun.launcher.why.sheet import BESIDE, LEFT, PHASES, SINCE, TOTAL, Phase, Sheet
from bundlerun.workers.device.accelerator import is_gpu
from bundlerun.workers.device.timers import StreamTimer
from bundlerun.workers.rank.recording import Recording

__all__ = ["EPOCH_END_PHASES", "LAUNCH", "PHASES", "Meters", "Phase"]

LAUNCH: Final = "launch"
"""On a GPU only: what the rank spends on giving it forwards, backwards and the optimizer."""
_LAUNCHED: Mapping[Phase, bool] = {
    "forward": True,
    "backward": True,
    "optimizer": True,
    "receive": False,
    "sync_wait": False,
}
"""Phases that a GPU is timed in, all by the rank's own thread; and whether their time on the rank
is launching. Else it is waiting, and what counts is how long the GPU has nothing to do for it."""
_IN_PASSES: frozenset[Phase] = frozenset({"snapshot_wait", "sync_wait", "optimizer"})
"""Phases that a forward or a backward may have inside."""
EPOCH_END_PHASES: tuple[Phase, ...] = ("checkpoint", "validate")


class _Timed:
    """Adds the seconds spent inside to those of a phase; entered several times per micro-batch."""

    __slots__ = ("_clock", "_is_beside", "_since", "_start", "_total", "_words")

    def __init__(self, clock: Callable[[], float], words: memoryview[float], phase: Phase) -> None:
        self._clock = clock
        self._words = words
        self._since = SINCE[phase]
        self._total = TOTAL[phase]
        self._is_beside = phase in BESIDE
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = self._words[self._since] = self._clock()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        words, now = self._words, self._clock()
        words[self._total] += now - self._start
        # What fails is where the rank stood, for who asks why.
        if kind is not None:
            return
        if not self._is_beside:
            words[LEFT] = now
        words[self._since] = 0.0


class _TimedInPass(_Timed):
    """The same of what a hook of a forward or backward may be in: that is no time of the pass.

    Not on a GPU, whose passes are timed there.
    """

    __slots__ = ()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for outer in ("forward", "backward"):
            if self._words[SINCE[outer]] and kind is None:
                self._words[TOTAL[outer]] -= self._clock() - self._start
        super().__exit__(kind, *rest)


class _TimedOnDevice:
    """The same on a GPU, between two marks in its stream; what launching takes apart."""

    __slots__ = ("_clock", "_mark", "_phase", "_start", "_timer", "_words")

    def __init__(
        self,
        clock: Callable[[], float],
        words: memoryview[float],
        phase: Phase,
        timer: StreamTimer[Phase],
    ) -> None:
        self._clock = clock
        self._words = words
        self._phase: Phase = phase
        self._timer = timer

    def __enter__(self) -> None:
        self._start = self._words[SINCE[self._phase]] = self._clock()
        self._mark = self._timer.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Not where it fails: a GPU that has failed takes no more marks, and would hide why.
        if kind is not None:
            return
        words, now = self._words, self._clock()
        self._timer.end(self._phase, self._mark)
        # What has been timed so far, for who looks on; `Meters.seconds` waits for the rest.
        words[TOTAL[self._phase]] = self._timer.known(self._phase)
        if _LAUNCHED[self._phase]:
            words[TOTAL[LAUNCH]] += now - self._start
        words[LEFT] = now
        words[SINCE[self._phase]] = 0.0


class Meters:
    """Adds up seconds per phase; each phase may be timed by one thread.

    Args:
        clock: of the rank; other processes that read the sheet know `time.perf_counter` only.
        timer: of its GPU; None: it computes on the CPU.
        sheet: where the numbers are; None: where only this process sees them.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        timer: StreamTimer[Phase] | None = None,
        sheet: Sheet | None = None,
    ) -> None:
        self._clock = clock
        self._timer = timer
        self.recording: Recording | None = None
        """Gets what is done from now on, with its times; None: only seconds are added up."""
        self.sheet = sheet or Sheet.private()
        """What this rank does right now."""
        self._words = self.sheet.words
        # Made once: no phase is inside itself, and making one takes as long as using it.
        self._timed: dict[Phase, AbstractContextManager[None]] = {
            phase: self._make(phase) for phase in PHASES
        }

    @classmethod
    def of(cls, device: torch.device, sheet: Sheet | None = None) -> Meters:
        """Those of a rank that computes on `device`."""
        return cls(timer=StreamTimer(device) if is_gpu(device) else None, sheet=sheet)

    def phase(self, phase: Phase) -> AbstractContextManager[None]:
        """Adds the time spent inside to `phase`."""
        timed, recording = self._timed[phase], self.recording
        return timed if recording is None else recording.of(phase, timed, phase in _LAUNCHED)

    def does(self, action: Action, step: int) -> None:
        """Which pass of which step the rank's own thread is at from now on."""
        if self.recording is not None:
            self.recording.action = action, step

    def _make(self, phase: Phase) -> AbstractContextManager[None]:
        if self._timer is not None and phase in _LAUNCHED:
            return _TimedOnDevice(self._clock, self._words, phase, self._timer)
        if self._timer is None and phase in _IN_PASSES:
            return _TimedInPass(self._clock, self._words, phase)
        return _Timed(self._clock, self._words, phase)

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase since the last `restart`; waits for what a GPU is doing."""
        found = {phase: float(self._words[TOTAL[phase]]) for phase in PHASES}
        if self._timer is not None:
            found |= {phase: self._timer.seconds(phase) for phase in _LAUNCHED}
        return found

    def wall_s(self) -> float:
        """Seconds since the last `restart`."""
        return self._clock() - self.sheet.begun_s

    def restart(self) -> None:
        """Sets all phases to zero."""
        for index in TOTAL.values():
            self._words[index] = 0.0
        if self._timer is not None:
            self._timer.restart()
        self.sheet.begin_epoch(self._clock())
