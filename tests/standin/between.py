"""What two processes share of their devices: memory, and events of one that the other waits for.

A GPU does by itself what it was given. Here nothing is done before somebody waits for it, so a
process that waits for an event of another one says so where both see it, and a thread of the other
one does then what comes before the event, and no earlier.

A wait is for the last time that the event had been recorded when the wait was given, as with CUDA:
none, if it had not been.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import threading
import time
from typing import Self

import torch
from torch import Tensor

from tests.standin.device import Device
from tests.standin.queues import Point, Queue

_RECORDED, _REACHED, _WANTED = range(3)
"""What is in a state: how often it was recorded; up to which time it has come, and is wanted."""
_NUM_BYTES = 24
_LIMIT_S = 60.0
_POLL_S = 0.0005


def _mapped(descriptor: int, num_bytes: int) -> mmap.mmap:
    return mmap.mmap(descriptor, num_bytes)


def _opened(pid: int, descriptor: int, num_bytes: int) -> mmap.mmap:
    opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        return _mapped(opened, num_bytes)
    finally:
        os.close(opened)


class SharedState:
    """The state of an event that two processes see.

    Args:
        memory: mapped by both.
        name: by which another process finds it; empty in that process.
    """

    def __init__(self, memory: mmap.mmap, name: str = "") -> None:
        self.name = name
        self._numbers = memoryview(memory).cast("q")
        self._recorded: queue.SimpleQueue[tuple[int, Point]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @classmethod
    def made(cls) -> Self:
        """A new one."""
        descriptor = os.memfd_create("standin-event")
        os.ftruncate(descriptor, _NUM_BYTES)
        return cls(_mapped(descriptor, _NUM_BYTES), json.dumps([os.getpid(), descriptor]))

    @classmethod
    def found(cls, name: str) -> Self:
        """The one of another process."""
        return cls(_opened(*json.loads(name), _NUM_BYTES))

    def record(self, device: Device, stream: Queue) -> None:
        """Records it in a stream of the process that has made it."""
        number = self._numbers[_RECORDED] + 1
        device.engine.give(stream, lambda: self._raise(_REACHED, number), lambda index, clock: None)
        point = device.engine.point(stream)
        self._numbers[_RECORDED] = number
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, args=(device,), daemon=True)
            self._thread.start()
        self._recorded.put((number, point))

    def _raise(self, which: int, number: int) -> None:
        self._numbers[which] = max(self._numbers[which], number)

    def _pump(self, device: Device) -> None:
        while True:
            number, point = self._recorded.get()
            while max(self._numbers[_WANTED], self._numbers[_REACHED]) < number:
                time.sleep(_POLL_S)
            device.engine.pump(point.queue, point.index)

    def wait(self, device: Device, stream: Queue) -> None:
        """Lets a stream of another process wait for it."""
        number = self._numbers[_RECORDED]

        def work() -> None:
            self._raise(_WANTED, number)
            deadline = time.monotonic() + _LIMIT_S
            while self._numbers[_REACHED] < number:
                if time.monotonic() > deadline:
                    raise RuntimeError("an event of another process does not come")
                time.sleep(_POLL_S)

        if number:
            stream.waits_for_others = True
            device.engine.give(stream, work, lambda index, clock: None)

    def query(self) -> bool:
        """Whether another process's has been reached; if not, it will be."""
        self._raise(_WANTED, self._numbers[_RECORDED])
        return self._numbers[_REACHED] >= self._numbers[_RECORDED]


def memory_handle(device: Device, memory: Tensor) -> str:
    """Puts what is behind a tensor where others can reach it, and says where."""
    block = device.memory.block(memory)
    descriptor = os.memfd_create("standin-memory")
    os.ftruncate(descriptor, block.num_bytes)
    shared = torch.frombuffer(_mapped(descriptor, block.num_bytes), dtype=torch.uint8)
    shared.copy_(block.base)
    block.base = shared
    start = memory.storage_offset() * memory.element_size()
    return json.dumps([os.getpid(), descriptor, block.num_bytes, start])


def memory_of(device: Device, handle: str, num_bytes: int) -> Tensor:
    """The memory of another process, (num_bytes,), uint8."""
    pid, descriptor, length, start = json.loads(handle)
    base = torch.frombuffer(_opened(pid, descriptor, length), dtype=torch.uint8)
    whole = device.memory.over(base, (length,), (1,), torch.uint8, device.current.number)
    return whole[start : start + num_bytes]
