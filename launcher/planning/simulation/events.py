"""A clock that jumps from event to event, and what several do at once on one wire or processor.

two messages on one wire      a |==--==|          each has half of it while both are there
b   |--=====|
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

Done = Callable[[], None]
_ROUNDING_S = 1e-9
"""What ends within that is taken to end at once."""


class Clock:
    """Does what is due, in order of time; what is due at one time in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._due: list[tuple[float, int, Done]] = []

    def after(self, seconds: float, done: Done) -> None:
        """Does `done` that much later."""
        self._count += 1
        heappush(self._due, (self.now + seconds, self._count, done))

    def run(self) -> None:
        """Until nothing is due."""
        due = self._due
        while due:
            self.now, _, done = heappop(due)
            done()


@dataclass(slots=True)
class _Task:
    left: float
    most: float
    done: Done
    rate: float = 0.0


class Pool:
    """What is under way at once shares it equally.

    Args:
        clock: of all.
        capacity: amount per second; inf: nothing slows anything.
    """

    def __init__(self, clock: Clock, capacity: float) -> None:
        self._clock = clock
        self._capacity = capacity
        self._tasks: list[_Task] = []
        self._since = 0.0
        self._version = 0

    def start(self, amount: float, done: Done, most: float = math.inf) -> None:
        """Begins a task, and does `done` at its end.

        Args:
            amount: of it.
            done: what to do.
            most: amount per second of this task, however much room there is.
        """
        if amount <= 0 or math.isinf(self._capacity):
            seconds = amount / most if amount > 0 else 0.0
            self._clock.after(seconds, done)
            return
        self._advance()
        self._tasks.append(_Task(amount, most, done))
        self._plan()

    def _advance(self) -> None:
        seconds = self._clock.now - self._since
        self._since = self._clock.now
        if seconds > 0:
            for task in self._tasks:
                task.left -= task.rate * seconds

    def _plan(self) -> None:
        """Gives each its rate, and comes back when the first one is done."""
        self._version += 1
        left, count = self._capacity, len(self._tasks)
        if not count:
            return
        # Those that cannot use an equal part leave the rest of it to the others.
        for task in sorted(self._tasks, key=lambda task: task.most):
            task.rate = min(task.most, left / count)
            left -= task.rate
            count -= 1
        first = min(task.left / task.rate for task in self._tasks)
        version = self._version
        self._clock.after(max(0.0, first), lambda: self._look(version))

    def _look(self, version: int) -> None:
        """Ends what is done, unless something has begun since this was asked for."""
        if version != self._version:
            return
        self._advance()
        # The first one is done, whatever rounding has left of it; and those that are so with it.
        first = min(task.left / task.rate for task in self._tasks)
        within = max(0.0, first) + _ROUNDING_S
        ended = [task for task in self._tasks if task.left / task.rate <= within]
        self._tasks = [task for task in self._tasks if task.left / task.rate > within]
        self._plan()
        for task in ended:
            task.done()
