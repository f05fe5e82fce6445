"""What streams have been given to do, in order; nothing is done before somebody waits for it.

    default    | a | b | c |             given, not done
    side       | after (default, 2) | d |

Whoever wants d done does b and all before it, then d; c stays undone. That is as late as a device
may be, and the streams are as far out of step as they may be: a stream that forgot to wait for b
does d with whatever memory held before. With a seed, an order drawn from it takes turns instead.

A *clock* says what is ordered before a point: for each stream how much of it. With it two uses of
one piece of memory can be told to be ordered or not, whatever the order they happened to come in.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Clock = dict[int, int]
"""By number of a stream: how many of the things it was given come before."""
Act = Callable[[], None]
Knowledge = dict[str, int]
"""By process: how many things it had given its streams when it gave what this depends on."""

_MOST_WAITING = 4096
"""Things that one stream holds; a GPU takes some thousands, and then the one who gives waits."""
_LIMIT_S = 60.0
"""Longest wait for another thread that works on a stream, seconds."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a stream: after the first `index` things that it was given."""

    queue: Queue
    index: int
    clock: Clock


@dataclass(slots=True, eq=False)
class Queue:
    """One stream.

    Args:
        number: no other stream's.
        name: for messages.
        waits_for_others: whether what it does waits for other processes, so that nothing does it
            but who waits for it, and the thread that it has for that.
    """

    number: int
    name: str
    waits_for_others: bool = False
    given: int = 0
    done: int = 0
    items: deque[Act | Point] = field(default_factory=deque)
    clock: Clock = field(default_factory=dict)
    is_busy: bool = False
    known: list[tuple[int, Knowledge]] = field(default_factory=list)
    """What it knew of other processes after how many things; ascending."""

    def knows(self, index: int) -> Knowledge:
        """What it knew of other processes when it had done that many things."""
        return next((what for at, what in reversed(self.known) if at <= index), {})

    def learn(self, news: Mapping[str, int]) -> None:
        """Whoever does what the stream has in hand has heard of other processes."""
        before = self.knows(self.done)
        if any(before.get(process, 0) < count for process, count in news.items()):
            self.known.append((self.done + 1, _later(before, news)))


def _later(one: Mapping[str, int], other: Mapping[str, int]) -> Knowledge:
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in {*one, *other}}


def merge(clock: Clock, other: Mapping[int, int]) -> None:
    """Lets all that is ordered before `other` come before `clock`, too."""
    for number, index in other.items():
        if clock.get(number, 0) < index:
            clock[number] = index


class Engine:
    """All streams of a process.

    Args:
        seed: draws from the order that streams take turns in; None: nothing is done early.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.failure: Exception | None = None
        """What went wrong in something that was given; whoever waits gets it."""
        self.num_given = 0
        self._host: Clock = {}
        """What the process has waited for: all that is given from here on comes after it."""
        self._queues: list[Queue] = []
        self._changed = threading.Condition(threading.RLock())
        self._draws = None if seed is None else random.Random(seed)

    def queue(self, name: str, *, waits_for_others: bool = False) -> Queue:
        """A new stream."""
        with self._changed:
            made = Queue(len(self._queues), name, waits_for_others)
            self._queues.append(made)
            return made

    def give(self, queue: Queue, act: Act, check: Callable[[int, Clock], None]) -> int:
        """Gives a stream something to do; returns how much it has been given with that.

        Args:
            queue: the stream.
            act: what.
            check: called at once with that number and what comes before.
        """
        with self._changed:
            merge(queue.clock, self._host)
            queue.given += 1
            self.num_given += 1
            queue.clock[queue.number] = queue.given
            queue.items.append(act)
            check(queue.given, queue.clock)
            index = queue.given
        self._go_on(queue)
        return index

    def point(self, queue: Queue) -> Point:
        """The end of what a stream has been given."""
        with self._changed:
            merge(queue.clock, self._host)
            return Point(queue, queue.given, dict(queue.clock))

    def let_wait(self, queue: Queue, point: Point) -> None:
        """Lets a stream wait for a point of another one."""
        with self._changed:
            if point.queue is queue:
                return
            queue.given += 1
            queue.items.append(point)
            merge(queue.clock, point.clock)
            queue.clock[queue.number] = queue.given

    def reach(self, point: Point) -> None:
        """Returns when a point has been reached; the caller does what is left to do.

        Raises:
            RuntimeError: something that was given went wrong, in this stream or another one.
        """
        self._do(point.queue, point.index)
        with self._changed:
            merge(self._host, point.clock)
        self.check()

    def check(self) -> None:
        """Raises RuntimeError if something that was given went wrong."""
        if self.failure is not None:
            raise RuntimeError(f"the device has failed: {self.failure}") from self.failure

    def reach_all(self) -> None:
        """Returns when all that was given has been done."""
        for queue in list(self._queues):
            self.reach(self.point(queue))

    def has_reached(self, point: Point) -> bool:
        """Whether a point has been reached; if so, what is given from here on comes after it."""
        with self._changed:
            if point.queue.done < point.index:
                return False
            merge(self._host, point.clock)
            return True

    def pump(self, queue: Queue, index: int) -> None:
        """Does what was given to a stream that has a thread for that."""
        self._do(queue, index)

    def hurry(self, queue: Queue) -> None:
        """Does what a stream has in hand, as far as it need not wait for another one."""
        self._do_ready(queue, len(queue.items))

    def _do(self, queue: Queue, index: int) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while self._claim(queue, index, deadline):
            try:
                self._perform(queue, queue.items[0])
            finally:
                self._release(queue)

    def _claim(self, queue: Queue, index: int, deadline: float) -> bool:
        """Takes the first thing in hand; False when all up to `index` are done."""
        with self._changed:
            while queue.is_busy and queue.done < index:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise RuntimeError(f"stream {queue.name} hangs")
            if queue.done >= index:
                return False
            queue.is_busy = True
            return True

    def _perform(self, queue: Queue, item: Act | Point) -> None:
        if isinstance(item, Point):
            self._do(item.queue, item.index)
            queue.learn(item.queue.knows(item.index))
        elif self.failure is None:
            try:
                item()
            except Exception as exc:  # as with a GPU: whoever waits next is told
                self.failure = exc

    def _release(self, queue: Queue) -> None:
        with self._changed:
            queue.items.popleft()
            queue.done += 1
            queue.is_busy = False
            self._changed.notify_all()

    # --- what is done though nobody waits for it

    def _go_on(self, queue: Queue) -> None:
        if self._draws is not None:
            with self._changed:
                queue = self._draws.choice(self._queues)
                count = self._draws.randrange(4)
            self._do_ready(queue, count)
        elif len(queue.items) > _MOST_WAITING:
            self._do_ready(queue, _MOST_WAITING // 2)

    def _do_ready(self, queue: Queue, count: int) -> None:
        """Does up to `count` things of a stream, as long as it need not wait for another one."""
        for _ in range(count):
            with self._changed:
                if queue.waits_for_others or queue.is_busy or not queue.items:
                    return
                item = queue.items[0]
                if isinstance(item, Point) and item.queue.done < item.index:
                    return
                queue.is_busy = True
            try:
                self._perform(queue, item)
            finally:
                self._release(queue)
