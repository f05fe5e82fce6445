"""What tells how long the pieces of a pass take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks moments; what is between them may be known only later, as on a GPU."""

    def mark(self) -> Any:  # noqa: ANN401 - each clock has its own
        """A moment, now."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """The time from each of several moments to the next one; waits until it is known."""


class HostClock:
    """The clock of the processor.

    With one thread it is the time that the processor has worked for this thread: what else runs on
    the machine counts for little. With several, whose times overlap, it is the time on the wall.

    Args:
        read: gives seconds; None: by the number of torch's threads.
    """

    def __init__(self, read: Callable[[], float] | None = None) -> None:
        by_threads = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        self._read = read or by_threads

    def mark(self) -> float:
        """See `Clock`."""
        return self._read()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """See `Clock`."""
        return [after - before for before, after in pairwise(marks)]
