"""Copies state from where it is, CPU or GPU, into a slot.

On a GPU the slot's memory is registered, so that the device copies into it by itself, on a stream
of its own that begins where the optimizer has ended; the thread waits for that, then sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device import host_memory
from bundlerun.workers.device.interface import Event
from bundlerun.workers.snapshot.checksum import checksum
from bundlerun.workers.snapshot.piece import Label
from bundlerun.workers.snapshot.slot import Slot


class DeviceCopy:
    """One copy of tensors as they are at one moment.

    Args:
        device: where the tensors are.
        event: on a GPU: recorded when they were final.
    """

    def __init__(self, device: torch.device, event: Event | None) -> None:
        self._device = device
        self._event = event

    @classmethod
    def after_now(cls, device: torch.device) -> DeviceCopy:
        """A copy of what the current stream has made of the tensors so far."""
        return cls(device, door.mark(device) if door.is_gpu(device) else None)

    def prepare(self, slot: Slot) -> host_memory.Registration | None:
        """Readies a new slot, until the answer ends; where that cannot be, copies take longer."""
        return host_memory.register(slot.data, self._device, file=slot.path)

    def write(self, slot: Slot, label: Label, tensors: Mapping[str, Tensor]) -> None:
        """Puts a piece into the slot."""
        if self._event is None:
            slot.write(label, tensors)
            return
        # Blank from here to the seal: a copy that dies half-way leaves no piece.
        slot.open()
        with door.on_stream(self._device, "snapshot"):
            # The state is final only at the event: else the copy would overlap the optimizer.
            door.current_stream(self._device).wait_event(self._event)
            # One call for all: for each call of its own the step's thread would stand still.
            sources = [tensors[name] for name in slot.layout.specs]
            if sources:  # a rank may have no share of a small stage, which torch refuses to copy
                torch._foreach_copy_(slot.views, sources, non_blocking=True)
            # The copies must have arrived before the CPU sums them.
            door.finish(self._device)
        slot.seal(label, checksum(slot.bytes))
