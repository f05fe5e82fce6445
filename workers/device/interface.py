"""What the module of a kind of device has, as torch has it for its own (`torch.cuda`, `torch.xpu`).

A stand-in registers one (`torch._register_device_module`), with these names and meanings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream | None = None) -> None:
        """Marks what the stream has been given so far; None: the current one."""
        ...

    def wait(self, stream: Stream | None = None) -> None:
        """Lets a stream, not the caller, wait for the mark; None: the current one."""
        ...

    def synchronize(self) -> None:
        """Returns when the mark has been reached."""
        ...

    def query(self) -> bool:
        """Whether it has been."""
        ...

    def elapsed_time(self, end: Event, /) -> float:
        """Milliseconds of the device from this mark to `end`, both made with `enable_timing`."""
        ...


class Stream(Protocol):
    """Work for the device that it does in order.

    One that is given to `Tensor.record_stream` has to be a `torch.Stream` as well.
    """

    def wait_event(self, event: Event, /) -> None:
        """Lets what it is given from here on wait for a mark."""
        ...

    def synchronize(self) -> None:
        """Returns when it has done all that it has been given."""
        ...


class DeviceModule(Protocol):
    """All that is needed of every kind."""

    def is_available(self) -> bool:
        """Whether there is one that works."""
        ...

    def device_count(self) -> int:
        """Devices that this process sees; starts nothing."""
        ...

    def set_device(self, device: torch.device, /) -> None:
        """Lets the calls of this thread refer to `device`."""
        ...

    def current_device(self) -> int:
        """The index of the one that they refer to."""
        ...

    def synchronize(self, device: torch.device, /) -> None:
        """Returns when the device has done all that this process has given it."""
        ...

    def current_stream(self, device: torch.device, /) -> Stream:
        """What this thread's work on `device` goes to."""
        ...

    def stream(self, stream: Stream, /) -> AbstractContextManager[object]:
        """Sends this thread's work to `stream` meanwhile."""
        ...

    def manual_seed(self, seed: int, /) -> None:
        """Seeds the generator of the current device, and of no other."""
        ...

    def get_rng_state(self, device: torch.device, /) -> Tensor:
        """The state of a device's generator, as `torch.random.fork_rng` wants it."""
        ...

    def set_rng_state(self, state: Tensor, device: torch.device, /) -> None:
        """Sets it."""
        ...

    def Stream(self, device: torch.device) -> Stream:
        """A new stream."""
        ...

    def Event(self, *, enable_timing: bool = False, blocking: bool = False) -> Event:
        """A new mark; `blocking`, which a kind need not take: who waits for it sleeps."""
        ...


@runtime_checkable
class HasMemory(Protocol):
    """A kind that gives figures of its memory, in bytes; else nothing is said of it."""

    def mem_get_info(self, device: torch.device, /) -> tuple[int, int]:
        """What is free, and all there is."""
        ...

    def memory_reserved(self, device: torch.device, /) -> int:
        """What this process holds."""
        ...

    def max_memory_reserved(self, device: torch.device, /) -> int:
        """The most that it has held."""
        ...


class Runtime(Protocol):
    """What we need of the CUDA runtime; codes other than 0 are failures."""

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        """Lets the GPU reach memory of the CPU."""
        ...

    def cudaHostUnregister(self, address: int) -> int:
        """Undoes that."""
        ...


@runtime_checkable
class HasRuntime(Protocol):
    """A kind that can map memory of the CPU that others map, too."""

    def cudart(self) -> Runtime:
        """The runtime of this process."""
        ...


@runtime_checkable
class SharesMemory(Protocol):
    """A kind whose module itself shares memory between processes; CUDA's is left to the driver."""

    def memory_handle(self, memory: Tensor, /) -> str:
        """By which another process of this node finds memory of the device."""
        ...

    def memory_of(self, handle: str, num_bytes: int, /) -> Tensor:
        """The memory of another process, (num_bytes,), uint8."""
        ...
