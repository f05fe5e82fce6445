"""Memory of the CPU that the device copies from and to by itself: pinned, or registered."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.standin.memory import wrapped

_POISON = 0xFF


class HostMemory:
    """What of the CPU's memory the device can reach.

    It also stands for the runtime that registers memory, with its names.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._lock = threading.RLock()

    def pinned(self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """New pinned memory, of no sense until something is put in."""
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        base = torch.full((max(1, extent * dtype.itemsize),), _POISON, dtype=torch.uint8)
        address = base.data_ptr()
        self._add(address, base.numel())
        return wrapped(base, size, stride, dtype, lambda: self._remove(address), on_cpu=True)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether the device reaches a tensor of the CPU by itself."""
        address = tensor.data_ptr()
        with self._lock:
            place = bisect.bisect_right(self._starts, address) - 1
            if place < 0:
                return False
            start = self._starts[place]
            return address < start + self._sizes[start]

    def _add(self, address: int, size: int) -> None:
        with self._lock:
            bisect.insort(self._starts, address)
            self._sizes[address] = size

    def _remove(self, address: int) -> None:
        with self._lock:
            self._starts.remove(address)
            del self._sizes[address]

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        """Lets the device reach memory; 0."""
        self._add(address, num_bytes)
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        """Undoes that; 0, or the code that it was never registered."""
        if address not in self._sizes:
            return 713
        self._remove(address)
        return 0
