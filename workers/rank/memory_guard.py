"""Tells the user what to do if memory runs out in the first step: a restart would repeat it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from bundlerun.launcher.agreement.continuation import has_begun
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, ConfigError, NodeError
from bundlerun.launcher.layout.microbatch import smaller_samples
from bundlerun.launcher.run_folder.microbatch import keep_samples
from bundlerun.launcher.run_folder.paths import RunPaths
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
        is_shared: whether ranks of this run are among these.
    """

    peak: int
    capacity: int
    others: int
    is_shared: bool = False

    @property
    def text(self) -> str:
        """How much this rank had."""
        had = f"this rank had {self.peak / _GIB:.1f} GiB of {self.capacity / _GIB:.1f} at its peak"
        if not self.is_shared:
            return had
        others = f"{self.others / _GIB:.1f} GiB"
        return f"{had}, and other processes hold {others}, as ranks share this GPU"

    @property
    def is_others_fault(self) -> bool:
        """Whether other runs and programs hold more than what goes without saying."""
        return not self.is_shared and self.others > _MOST_OF_OTHERS * self.capacity


class MemoryGuard:
    """Around the work of a rank: turns its own lack of memory into an error that says what to do.

    Args:
        config: of the run.
        device: where the stage lives.
        num_finished: gives the steps that this start has finished.
        may_shrink: nobody has said how large micro-batches are: if those of a new run do not fit
            into the GPU, the next start has smaller ones.
        shares_gpu: other ranks may use the same GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        num_finished: Callable[[], int] = lambda: 0,
        *,
        may_shrink: bool = False,
        shares_gpu: bool = False,
    ) -> None:
        self._config = config
        self._device = device
        self._num_finished = num_finished
        self._may_shrink = may_shrink
        self._shares_gpu = shares_gpu

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Replaces a lack of memory that a restart would meet again.

        Raises:
            ConfigError: what to do about it.
            NodeError: other processes have the memory; another start may find it free.
            BundleError: another start has smaller micro-batches.
        """
        # Later steps need no more than the first, so that a restart may help them.
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not self._num_finished():
            use = _use(self._device, is_shared=self._shares_gpu)
            if use is not None and use.is_others_fault:
                raise NodeError(why_filled(use)) from error
            if use is not None:
                self._shrink(use, error)
            raise ConfigError(why_out_of_memory(self._config, use)) from error

    def _shrink(self, use: MemoryUse, error: BaseException) -> None:
        paths = RunPaths(Path(self._config.run_dir))
        samples = smaller_samples(self._config.samples_per_microbatch)
        # A run that has come further keeps what it is computed with (I1).
        if self._may_shrink and samples and not has_begun(paths):
            # Other ranks that lack memory now write the same; the next start reads it.
            keep_samples(paths, self._config.batch_size, samples)
            raise BundleError(why_smaller(self._config, use, samples)) from error


def _use(device: torch.device, *, is_shared: bool) -> MemoryUse | None:
    found = door.memory(device)
    if found is None:
        return None
    others = max(0, found.capacity - found.free - found.own)
    return MemoryUse(peak=found.peak, capacity=found.capacity, others=others, is_shared=is_shared)


def why_filled(use: MemoryUse) -> str:
    """What is wrong and what to do, where other processes have the memory."""
    return (
        f"no GPU memory left in the first step: other processes hold {use.others / _GIB:.1f} GiB "
        f"of {use.capacity / _GIB:.1f}, and this rank had {use.peak / _GIB:.1f} at its peak; "
        "nvidia-smi names them; end them, or choose other GPUs with CUDA_VISIBLE_DEVICES"
    )


def why_smaller(config: TrainConfig, use: MemoryUse, samples: int) -> str:
    """What happens where the micro-batches that nobody has asked for are too large."""
    return (
        f"no GPU memory left in the first step: {use.text}, with micro-batches of "
        f"{config.samples_per_microbatch} samples, the default; from the next start on they have "
        f"{samples}; --microbatch-size says it from the first on"
    )


def why_out_of_memory(config: TrainConfig, use: MemoryUse | None) -> str:
    """What is wrong and what to do, where this run itself needs too much.

    Args:
        config: of the run.
        use: of the GPU; None: it was the memory of the node.
    """
    samples = config.samples_per_microbatch
    way = "give a --shape of more stages"
    if use is not None and use.is_shared:
        way += ", or fewer ranks (--nproc-per-node)"
    if samples > 1:
        half = max(d for d in range(1, samples // 2 + 1) if samples % d == 0)
        way = f"use --microbatch-size {half}, or {way.removeprefix('give ')}"
    if use is None:
        return (
            f"no memory left on this node in the first step, with micro-batches of {samples}; {way}"
        )
    return (
        f"no GPU memory left in the first step: {use.text}, with micro-batches of {samples} "
        f"samples; {way}"
    )
