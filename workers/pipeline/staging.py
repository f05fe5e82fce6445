"""Copies between a GPU and CPU memory that it reaches by itself, which no compute waits for.

    compute stream   ..forward j..|[1] mark            |forward j+1 ..   [4] `use`: waits, reads
    side stream                   |[2] copy out|   |[3] copy in|
    helper thread                              |send   |receive

Only a helper thread waits for a copy; a compute stream waits for an event where it needs one. The
memory is pinned memory of torch, or a slot that the other rank has, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
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

    def use(self, device: torch.device) -> list[Tensor]:
        """The copies on a GPU, for its current stream."""
        # [4]
        current = door.current_stream(device)
        current.wait_event(self.done)
        # Their memory is the other stream's, which would reuse it too early.
        for tensor in self.tensors:
            door.used_by(tensor, current)
        return self.tensors


class Staging:
    """One direction of one link has one; used by its rank and its helper.

    All links of a rank share one stream to copy out and one to copy in: a copy out waits for
    nothing but this GPU's compute, a copy in for nothing at all.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._under_way: deque[tuple[Sequence[Tensor], Event]] = deque()

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

    def copy_into(self, places: Sequence[Tensor], tensors: Sequence[Tensor], ready: Event) -> Event:
        """Starts to copy tensors into these places, once `ready` has happened.

        Returns:
            When it is done. Until then the caller keeps both, and their numbers as they are.
        """
        with door.on_stream(self._device, "copy out"):
            # [2]
            door.stream(self._device, "copy out").wait_event(ready)
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
            return door.mark(self._device)

    def buffers(self, specs: Specs) -> list[Tensor]:
        """Pinned memory to receive into."""
        return [host_memory.pinned(s.shape, s.dtype) for s in specs]

    def copy_in(self, tensors: Sequence[Tensor]) -> Copies:
        """Starts to copy to the GPU; keeps `tensors` until that is done, and some longer."""
        while self._under_way and self._under_way[0][1].query():
            self._under_way.popleft()
        # [3]
        with door.on_stream(self._device, "copy in"):
            found = [door.placed(tensor, self._device) for tensor in tensors]
            done = door.mark(self._device)
        # A slot that nobody refers to is written again: torch knows of no copy from there.
        self._under_way.append((tensors, done))
        return Copies(found, done)

    def use(self, copies: Copies) -> list[Tensor]:
        """The copies on the GPU, for the current stream."""
        return copies.use(self._device)
