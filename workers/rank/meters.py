"""Where the time goes: seconds per phase, on one rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

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
]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The legs of the sync, `collect` to `distribute`, run while the others do: `sync_wait` is the
part that is not hidden. So do the copies of a snapshot, with `snapshot_wait`."""
EPOCH_END_PHASES: tuple[Phase, ...] = ("checkpoint", "validate")


class Meters:
    """Adds up seconds per phase; each phase may be timed by one thread.

    On CUDA the clock measures what the processor waits for, not what the device does.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Adds the time spent inside to `phase`."""
        start = self._clock()
        try:
            yield
        finally:
            self._seconds[phase] += self._clock() - start

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase since the last `restart`."""
        return dict(self._seconds)

    def restart(self) -> None:
        """Sets all phases to zero."""
        for phase in PHASES:
            self._seconds[phase] = 0.0
