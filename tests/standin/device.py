"""The device of this process: its memory, its streams, what was seen of it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tests.standin.accesses import Use, check_end, check_uses
from tests.standin.memory import Block, Memory, on_cpu, range_of
from tests.standin.places import Record
from tests.standin.queues import Clock, Engine, Point, Queue

KIND = "standin"
DEFAULT = 0
"""Number of the stream that threads begin with."""


class Device:
    """A device that nothing else uses.

    Args:
        seed: draws the order that streams take turns in; None: as late as can be.
        name: of the device, the same for processes that share one.
    """

    def __init__(self, seed: int | None = None, name: str = "") -> None:
        self.engine = Engine(seed)
        self.memory = Memory()
        self.record = Record()
        self.name = name or uuid.uuid4().hex
        self.process = uuid.uuid4().hex
        self.queues: list[Queue] = [self.engine.queue("0")]
        self._threads = threading.local()

    def new_queue(self, *, waits_for_others: bool = False) -> Queue:
        """A new stream."""
        queue = self.engine.queue(str(len(self.queues)), waits_for_others=waits_for_others)
        self.queues.append(queue)
        return queue

    @property
    def current(self) -> Queue:
        """What this thread's work goes to."""
        return getattr(self._threads, "queue", self.queues[DEFAULT])

    @current.setter
    def current(self, queue: Queue) -> None:
        self._threads.queue = queue

    def empty(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """New memory for the current stream."""
        return self.memory.empty(size, stride, dtype, self.current.number)

    def plain(self, tensor: Tensor) -> Tensor:
        """A tensor of the device as one of the CPU, over the same bytes."""
        return on_cpu(tensor, self.memory.block(tensor))

    def use(self, tensor: Tensor, *, writes: bool) -> Use:
        """What something that reads or writes a tensor of the device does to its memory."""
        return self.memory.block(tensor), *range_of(tensor), writes

    def give(
        self, name: str, act: Callable[[], None], uses: Iterable[Use], queue: Queue | None = None
    ) -> int:
        """Gives a stream something to do, the current one if none is named."""
        self._sweep()
        self.record.operation(name)
        found, queue = list(uses), queue or self.current

        def check(index: int, clock: Clock) -> None:
            check_uses(found, queue.number, index, clock, name, self.record)

        return self.engine.give(queue, act, check)

    def _sweep(self) -> None:
        """Looks at memory that was given back."""
        given_back = self.memory.given_back
        while given_back:
            try:
                block = given_back.popleft()
            except IndexError:  # another thread was faster
                return
            owner = self.queues[block.queue]
            if not check_end(block, self.engine.point(owner).clock, self.record):
                self._reuse(block, owner)

    def _reuse(self, block: Block, owner: Queue) -> None:
        """Gives memory to something else of its stream at once, as torch may."""
        self.engine.give(owner, block.poison, lambda index, clock: None)
        self.engine.hurry(owner)

    def wait(self, point: Point) -> None:
        """The process waits for a point of a stream."""
        self.record.wait()
        self.engine.reach(point)

    def wait_current(self) -> None:
        """The process waits for the current stream."""
        self.wait(self.engine.point(self.current))

    def wait_all(self) -> None:
        """The process waits for all streams."""
        self.record.wait()
        self.engine.reach_all()
