"""Where the time goes: seconds per phase, on one rank.

On a GPU most work is only launched by the rank. What it computes is timed on the GPU itself,
between two marks in its stream; what launching that takes the rank is a phase of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final, Literal, get_args

import torch

from bundlerun.launcher.layout.schedule import Action
from bundlerun.workers.device.accelerator import is_gpu
from bundlerun.workers.device.timers import StreamTimer
from bundlerun.workers.rank.recording import Recording

Phase = Literal[
    "data",
    "forward",
    "backward",
    "send",
    "receive",
    "collect",
    "exchange",
    "gather",
    "distribute",
    "sync_wait",
    "optimizer",
    "snapshot",
    "snapshot_wait",
    "checkpoint",
    "validate",
    "launch",
]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The legs of the sync, `collect` to `distribute`, run while the others do: `sync_wait` is the
part that is not hidden. So do the copies of a snapshot, with `snapshot_wait`."""
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
EPOCH_END_PHASES: tuple[Phase, ...] = ("checkpoint", "validate")


class _Timed:
    """Adds the seconds spent inside to those of a phase; entered several times per micro-batch."""

    __slots__ = ("_clock", "_phase", "_seconds", "_start")

    def __init__(
        self, clock: Callable[[], float], seconds: dict[Phase, float], phase: Phase
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._phase: Phase = phase
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = self._clock()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._phase] += self._clock() - self._start


class _TimedOnDevice:
    """The same on a GPU, between two marks in its stream; what launching takes apart."""

    __slots__ = ("_clock", "_mark", "_phase", "_seconds", "_start", "_timer")

    def __init__(
        self,
        clock: Callable[[], float],
        seconds: dict[Phase, float],
        phase: Phase,
        timer: StreamTimer[Phase],
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._phase: Phase = phase
        self._timer = timer

    def __enter__(self) -> None:
        self._start = self._clock()
        self._mark = self._timer.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Not where it fails: a GPU that has failed takes no more marks, and would hide why.
        if kind is not None:
            return
        self._timer.end(self._phase, self._mark)
        if _LAUNCHED[self._phase]:
            self._seconds[LAUNCH] += self._clock() - self._start


class Meters:
    """Adds up seconds per phase; each phase may be timed by one thread.

    Args:
        clock: of the rank.
        timer: of its GPU; None: it computes on the CPU.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        timer: StreamTimer[Phase] | None = None,
    ) -> None:
        self._clock = clock
        self._timer = timer
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self.recording: Recording | None = None
        """Gets what is done from now on, with its times; None: only seconds are added up."""

    @classmethod
    def of(cls, device: torch.device) -> Meters:
        """Those of a rank that computes on `device`."""
        return cls(timer=StreamTimer(device) if is_gpu(device) else None)

    def phase(self, phase: Phase) -> AbstractContextManager[None]:
        """Adds the time spent inside to `phase`."""
        timed: _Timed | _TimedOnDevice
        if self._timer is not None and phase in _LAUNCHED:
            timed = _TimedOnDevice(self._clock, self._seconds, phase, self._timer)
        else:
            timed = _Timed(self._clock, self._seconds, phase)
        recording = self.recording
        return timed if recording is None else recording.of(phase, timed, phase in _LAUNCHED)

    def does(self, action: Action, step: int) -> None:
        """Which pass of which step the rank's own thread is at from now on."""
        if self.recording is not None:
            self.recording.action = action, step

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase since the last `restart`; waits for what a GPU is doing."""
        found = dict(self._seconds)
        if self._timer is not None:
            found |= {phase: self._timer.seconds(phase) for phase in _LAUNCHED}
        return found

    def restart(self) -> None:
        """Sets all phases to zero."""
        for phase in PHASES:
            self._seconds[phase] = 0.0
        if self._timer is not None:
            self._timer.restart()
