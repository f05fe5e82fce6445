"""Copies between a GPU and pinned CPU memory that no compute waits for.

    compute stream   ..forward j..|[1] mark            |forward j+1 ..   [4] `use`: waits, reads
    side stream                   |[2] copy out|   |[3] copy in|
    helper thread                              |send   |receive

Only a helper thread waits for a copy; a compute stream waits for an event where it needs one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device import host_memory
from bundlerun.workers.device.interface import Event
from bundlerun.workers.pipeline.message import Specs


class Copies(NamedTuple):
    """Tensors that are being copied, and when they are there."""

    tensors: list[Tensor]
    done: Event


class Staging:
    """One direction of one link has one; used by its rank and its helper.

    All links of a rank share one stream to copy out and one to copy in: a copy out waits for
    nothing but this GPU's compute, a copy in for nothing at all.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Event:
        """An event that happens when all that the current stream has been given so far is done."""
        return door.mark(self._device)

    def copy_out(self, tensors: Iterable[Tensor], ready: Event) -> Copies:
        """Starts to copy tensors to pinned memory, once `ready` has happened."""
        found = []
        stream = door.stream(self._device, "copy out")
        with door.on_stream(self._device, "copy out"):
            # [2] The stream waits, no thread does.
            stream.wait_event(ready)
            for tensor in tensors:
                copy = host_memory.pinned(tensor.shape, tensor.dtype)
                copy.copy_(tensor, non_blocking=True)
                # The rank may let go of it before the copy is done.
                door.used_by(tensor, stream)
                found.append(copy)
            return Copies(found, door.mark(self._device))

    def buffers(self, specs: Specs) -> list[Tensor]:
        """Pinned memory to receive into."""
        return [host_memory.pinned(s.shape, s.dtype) for s in specs]

    def copy_in(self, tensors: Iterable[Tensor]) -> Copies:
        """Starts to copy from pinned memory to the GPU."""
        # [3]
        with door.on_stream(self._device, "copy in"):
            found = [door.placed(tensor, self._device) for tensor in tensors]
            return Copies(found, door.mark(self._device))

    def use(self, copies: Copies) -> list[Tensor]:
        """The copies on the GPU, for the current stream."""
        # [4]
        current = door.current_stream(self._device)
        current.wait_event(copies.done)
        # Their memory is the other stream's, which would reuse it too early.
        for tensor in copies.tensors:
            door.used_by(tensor, current)
        return copies.tensors
