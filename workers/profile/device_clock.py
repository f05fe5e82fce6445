"""The time that an accelerator works on the pieces of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from bundlerun.splits.profile.clock import Clock, HostClock
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event


class DeviceClock:
    """Marks in the stream that this thread's work goes to; nobody waits for one of them.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Event:
        """See `Clock`."""
        made = door.timer(self._device)
        made.record(door.current_stream(self._device))
        return made

    def seconds(self, marks: Sequence[Event]) -> list[float]:
        """See `Clock`."""
        if marks:
            marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return DeviceClock(device) if door.is_gpu(device) else HostClock()
