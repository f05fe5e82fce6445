"""What `torch.cuda` is for CUDA: streams, events, figures, random state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.standin.between import SharedState, memory_handle, memory_of
from tests.standin.device import Device
from tests.standin.draws import Generator
from tests.standin.host import HostMemory
from tests.standin.queues import Point, Queue

_CAPACITY = 16 << 30
_PRIVATE_USE_1 = 20
"""torch's number for this type of device."""


class Properties:
    """What a device says of itself."""

    def __init__(self, device: Device) -> None:
        self.uuid = device.name
        self.name = "stand-in"
        self.total_memory = _CAPACITY


class Event:
    """A mark in a stream."""

    _module: Module
    """Set by a subclass, which `Module` makes."""

    def __init__(
        self, *, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self._own = SharedState.made() if interprocess else None
        """What other processes see of it."""
        self._others: SharedState | None = None
        """What another process has made."""
        self._point: Point | None = None
        self._reached_at = 0.0
        self._is_timed = enable_timing

    @classmethod
    def from_ipc_handle(cls, device: Any, handle: bytes) -> Event:
        """The event of another process; it cannot be recorded here."""
        made = cls()
        made._others = SharedState.found(handle.decode())
        return made

    def ipc_handle(self) -> bytes:
        """By which another process finds it."""
        if self._own is None:
            raise RuntimeError("the event must be made with interprocess=True")
        return self._own.name.encode()

    def record(self, stream: Any = None) -> None:
        """Marks what a stream has been given so far; None: the current one."""
        queue = self._module.queue_of(stream)
        if self._own is not None:
            self._own.record(self._module.device, queue)
        if self._is_timed:
            self._module.device.engine.give(queue, self._note_time, lambda index, clock: None)
        self._point = self._module.device.engine.point(queue)

    def _note_time(self) -> None:
        self._reached_at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        """Lets a stream wait for it; None: the current one."""
        if self._others is not None:
            self._others.wait(self._module.device, self._module.queue_of(stream))
        if self._point is not None:
            self._module.device.engine.let_wait(self._module.queue_of(stream), self._point)

    def synchronize(self) -> None:
        """Returns when it has been reached."""
        if self._point is not None:
            self._module.device.wait(self._point)

    def query(self) -> bool:
        """Whether it has been."""
        if self._others is not None:
            return self._others.query()
        return self._point is None or self._module.device.engine.has_reached(self._point)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds to another one."""
        if not (self._is_timed and end._is_timed):
            raise ValueError("both events must be made with enable_timing=True")
        if not (self.query() and end.query()):
            raise RuntimeError("both events must be completed before calculating elapsed time")
        return 1e3 * (end._reached_at - self._reached_at)


class Stream(torch.Stream):
    """Work for the device that it does in order."""

    _module: Module
    queue: Queue

    def __new__(cls, device: Any = None, *, queue: Queue | None = None) -> Stream:
        queue = queue or cls._module.device.new_queue()
        made: Stream = super().__new__(  # type: ignore[call-overload]
            cls, stream_id=queue.number, device_index=0, device_type=_PRIVATE_USE_1
        )
        made.queue = queue
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        """Lets what it is given from here on wait for a mark."""
        event.wait(self)

    def wait_stream(self, stream: Any) -> None:
        """The same for all that another stream has been given so far."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Any = None) -> Any:
        """A mark after all that it has been given."""
        event = event or self._module.Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Returns when it has done all that it has been given."""
        device = self._module.device
        device.wait(device.engine.point(self.queue))

    def query(self) -> bool:
        """Whether it has."""
        engine = self._module.device.engine
        return engine.has_reached(engine.point(self.queue))


class Module:
    """Registered with torch under the kind of the device.

    Args:
        device: it.
        generator: its random numbers.
        host: memory of the CPU that it reaches.
    """

    def __init__(self, device: Device, generator: Generator, host: HostMemory) -> None:
        self.device = device
        self._generator = generator
        self._host = host
        self.Event = type("Event", (Event,), {"_module": self})
        self.Stream = type("Stream", (Stream,), {"_module": self})

    def queue_of(self, stream: Any) -> Queue:
        """The stream behind one of torch's; the current one for None."""
        return self.device.current if stream is None else self.device.queues[stream.stream_id]

    # --- which one

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def set_device(self, device: Any) -> None:
        """There is but one."""

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: Any = None) -> Properties:
        return Properties(self.device)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    # --- streams

    def current_stream(self, device: Any = None) -> Any:
        return self.Stream(queue=self.device.current)

    def default_stream(self, device: Any = None) -> Any:
        return self.Stream(queue=self.device.queues[0])

    @contextmanager
    def stream(self, stream: Any) -> Iterator[Any]:
        """Sends this thread's work to `stream` meanwhile."""
        before, self.device.current = self.device.current, self.queue_of(stream)
        try:
            yield stream
        finally:
            self.device.current = before

    def synchronize(self, device: Any = None) -> None:
        self.device.wait_all()

    # --- random numbers

    def manual_seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self._generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self._generator.set_state(state)

    # --- memory

    def memory_handle(self, memory: Tensor) -> str:
        return memory_handle(self.device, memory)

    def memory_of(self, handle: str, num_bytes: int) -> Tensor:
        return memory_of(self.device, handle, num_bytes)

    def cudart(self) -> HostMemory:
        return self._host

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return _CAPACITY - self.device.memory.held_bytes, _CAPACITY

    def memory_reserved(self, device: Any = None) -> int:
        return self.device.memory.held_bytes

    def memory_allocated(self, device: Any = None) -> int:
        return self.device.memory.held_bytes

    def max_memory_reserved(self, device: Any = None) -> int:
        return self.device.memory.most_bytes

    def max_memory_allocated(self, device: Any = None) -> int:
        return self.device.memory.most_bytes

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        self.device.memory.most_bytes = self.device.memory.held_bytes

    def empty_cache(self) -> None:
        """There is none."""
