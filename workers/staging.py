"""Copies between a GPU and pinned CPU memory that no compute waits for.

    compute stream   ..forward j..|mark                  |forward j+1 ..   reads what `use` gives
    side stream                   |copy out|       |copy in|
    helper thread                          |send   |receive

Only a helper thread waits for a copy; a compute stream waits for an event where it needs one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from workers.message import Specs


class Copies(NamedTuple):
    """Tensors that are being copied, and when they are there."""

    tensors: list[Tensor]
    done: torch.cuda.Event


class Staging:
    """One direction of one link has one, and with it a stream; used by its rank and its helper.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        """When all that the current stream has been given so far is done."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy_out(self, tensors: Iterable[Tensor], ready: torch.cuda.Event) -> Copies:
        """Starts to copy to pinned memory what is there from `ready` on."""
        found = []
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            for tensor in tensors:
                # Pinned memory comes from torch's cache, which knows of the copies under way.
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copy.copy_(tensor, non_blocking=True)
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)
                found.append(copy)
            return Copies(found, self._stream.record_event())

    def buffers(self, specs: Specs) -> list[Tensor]:
        """Pinned memory to receive into."""
        return [torch.empty(s.shape, dtype=s.dtype, pin_memory=True) for s in specs]

    def copy_in(self, tensors: Iterable[Tensor]) -> Copies:
        """Starts to copy from pinned memory to the GPU."""
        with torch.cuda.stream(self._stream):
            found = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
            return Copies(found, self._stream.record_event())

    def use(self, copies: Copies) -> list[Tensor]:
        """The copies on the GPU, for the current stream."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copies.done)
        for tensor in copies.tensors:
            tensor.record_stream(current)
        return copies.tensors
