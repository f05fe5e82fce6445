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

from bundlerun.workers.pipeline.message import Specs
from bundlerun.workers.rank import device as door


class Copies(NamedTuple):
    """Tensors that are being copied, and when they are there."""

    tensors: list[Tensor]
    done: door.Event


class Staging:
    """One direction of one link has one; used by its rank and its helper.

    All links of a rank have one stream to copy out and one to copy in, because a copy waits for
    this GPU's compute at most, and a copy in for nothing.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> door.Event:
        """When all that the current stream has been given so far is done."""
        return door.mark(self._device)

    def copy_out(self, tensors: Iterable[Tensor], ready: door.Event) -> Copies:
        """Starts to copy to pinned memory what is there from `ready` on."""
        found = []
        stream = door.stream(self._device, "copy out")
        with door.on_stream(self._device, "copy out"):
            stream.wait_event(ready)
            for tensor in tensors:
                copy = door.pinned(tensor.shape, tensor.dtype)
                copy.copy_(tensor, non_blocking=True)
                door.used_by(tensor, stream)
                found.append(copy)
            return Copies(found, door.mark(self._device))

    def buffers(self, specs: Specs) -> list[Tensor]:
        """Pinned memory to receive into."""
        return [door.pinned(s.shape, s.dtype) for s in specs]

    def copy_in(self, tensors: Iterable[Tensor]) -> Copies:
        """Starts to copy from pinned memory to the GPU."""
        with door.on_stream(self._device, "copy in"):
            found = [door.placed(tensor, self._device) for tensor in tensors]
            return Copies(found, door.mark(self._device))

    def use(self, copies: Copies) -> list[Tensor]:
        """The copies on the GPU, for the current stream."""
        current = door.current_stream(self._device)
        current.wait_event(copies.done)
        for tensor in copies.tensors:
            door.used_by(tensor, current)
        return copies.tensors
