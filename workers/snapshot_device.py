"""Copies state from where it is, CPU or GPU, into a slot.

On CUDA the slot's memory is registered, so that the device copies into it by itself, on a stream
of its own that begins where the optimizer has ended; the thread waits for that, then sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from workers.snapshot_bytes import checksum
from workers.snapshot_piece import Label
from workers.snapshot_slot import Slot


class DeviceCopy:
    """One copy of tensors as they are at one moment.

    Args:
        device: where the tensors are.
        event: on CUDA: recorded when they were final.
    """

    def __init__(self, device: torch.device, event: torch.cuda.Event | None) -> None:
        self._device = device
        self._event = event

    @classmethod
    def after_now(cls, device: torch.device) -> DeviceCopy:
        """A copy of what the current stream has made of the tensors so far."""
        if device.type != "cuda":
            return cls(device, None)
        event = torch.cuda.Event()
        event.record()
        return cls(device, event)

    @property
    def clock(self) -> Callable[[], float]:
        """What the copy takes from computing: on the CPU the thread's time on a core."""
        return time.thread_time if self._event is None else _no_time

    def prepare(self, slot: Slot) -> None:
        """Readies a new slot; where the driver refuses to register it, copies take longer."""
        if self._event is not None and slot.data.numel():
            torch.cuda.cudart().cudaHostRegister(slot.data.data_ptr(), slot.data.numel(), 0)

    def forget(self, slot: Slot) -> None:
        """Undoes `prepare`, before the memory goes."""
        if self._event is not None and slot.data.numel():
            torch.cuda.cudart().cudaHostUnregister(slot.data.data_ptr())

    def write(self, slot: Slot, label: Label, tensors: Mapping[str, Tensor]) -> None:
        """Puts a piece into the slot."""
        if self._event is None:
            slot.write(label, tensors)
            return
        stream = torch.cuda.Stream(self._device)
        slot.open()
        with torch.cuda.stream(stream):
            stream.wait_event(self._event)
            for name in slot.layout.specs:
                view = slot.layout.view(slot.data, name)
                view.copy_(tensors[name], non_blocking=True)
        stream.synchronize()
        slot.seal(label, checksum(slot.bytes))


def _no_time() -> float:
    return 0.0
