"""Tells the user what to do if memory runs out in the first step: a restart would repeat it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.device import accelerator as door

_GIB = 1 << 30
_MOST_OF_OTHERS = 0.1
"""Share of a GPU above which other processes are the cause. A rank that was killed is one of them
for a second or two, until the driver has taken back its memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """The memory of one device, in bytes.

    Args:
        peak: the most that this process has had at once.
        capacity: of the device.
        others: what other processes hold.
    """

    peak: int
    capacity: int
    others: int


class MemoryGuard:
    """Around the work of a rank: turns its own lack of memory into an error that says what to do.

    Args:
        config: of the run.
        device: where the stage lives.
        num_finished: gives the steps that this start has finished.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        num_finished: Callable[[], int] = lambda: 0,
    ) -> None:
        self._config = config
        self._device = device
        self._num_finished = num_finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Replaces a lack of memory that a restart would meet again.

        Raises:
            ConfigError: what to do about it.
        """
        # Later steps need no more than the first, so that a restart may help them.
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not self._num_finished():
            text = why_out_of_memory(self._config, _use(self._device))
            if text:
                raise ConfigError(text) from error


def _use(device: torch.device) -> MemoryUse | None:
    found = door.memory(device)
    if found is None:
        return None
    others = max(0, found.capacity - found.free - found.own)
    return MemoryUse(peak=found.peak, capacity=found.capacity, others=others)


def why_out_of_memory(config: TrainConfig, use: MemoryUse | None) -> str:
    """What is wrong and what to do; empty where others hold the memory, and may give it back.

    Args:
        config: of the run.
        use: of the GPU; None: it was the memory of the node.
    """
    samples = config.samples_per_microbatch
    way = "give a --shape of more stages"
    if samples > 1:
        half = max(d for d in range(1, samples // 2 + 1) if samples % d == 0)
        way = f"use --microbatch-size {half}, or a --shape of more stages"
    if use is None:
        return (
            f"no memory left on this node in the first step, with micro-batches of {samples}; {way}"
        )
    if use.others > _MOST_OF_OTHERS * use.capacity:
        return ""
    return (
        f"no GPU memory left in the first step: this rank had {use.peak / _GIB:.1f} GiB of "
        f"{use.capacity / _GIB:.1f} at its peak, with micro-batches of {samples} samples; {way}"
    )
