"""Asks the run to stop in good order, and asks again where a start has overlooked it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import request_stop

AGAIN_S = 2.0


class Asker:
    """Writes the request that `bundlerun drain` writes.

    Not a signal to the agent: while that has no ranks, because it starts or recovers, a signal
    would end it, and the run would lose what is in memory alone. The request waits for the ranks.
    Who begins a start removes what is older than that, hence `insist`.

    Args:
        clock: monotonic, seconds.
    """

    def __init__(self, paths: RunPaths, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._asked_s: float | None = None

    @property
    def has_asked(self) -> bool:
        """Whether the run has been asked to stop."""
        return self._asked_s is not None

    def ask(self, why: str) -> bool:
        """Writes the request; False where it cannot be written."""
        self._asked_s = self._clock()
        try:
            request_stop(self._paths, why)
        except OSError:
            return False
        return True

    def insist(self) -> None:
        """Writes it again where it has gone and the run has not ended."""
        if self._asked_s is None or self._clock() - self._asked_s < AGAIN_S:
            return
        self._asked_s = self._clock()
        if not self._paths.drain.exists() and not self._paths.outcome.exists():
            with suppress(OSError):
                request_stop(self._paths, "asked before, and not stopped")
