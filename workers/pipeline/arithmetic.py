"""Where a rank computes, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bundlerun.launcher.choices import Precision
from bundlerun.workers.optim.loss_scale import LossScale

_BY_AUTOCAST: Mapping[Precision, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The device and the precision of a stage.

    Args:
        device: where the stage lives.
        precision: "float32", "float64", or "bfloat16" or "float16" (autocast).
        memory_format: what images are to be in; see `bundlerun.workers.model.memory_format`.
        loss_scale: what backwards begin with a multiple of.
    """

    device: torch.device
    precision: Precision
    memory_format: torch.memory_format = torch.preserve_format
    loss_scale: LossScale = field(default_factory=LossScale)

    def placed(self, tensor: Tensor) -> Tensor:
        """A tensor of the data on the device; floating-point numbers as wide as the stage's."""
        # Labels and token ids stay whole numbers.
        if self.precision == "float64" and tensor.is_floating_point():
            found = tensor.to(self.device, torch.float64, non_blocking=True)
        elif tensor.device == self.device:
            found = tensor
        else:
            found = tensor.to(self.device, non_blocking=True)
        if self.memory_format is torch.preserve_format:
            return found
        is_image = found.dim() == 4 and found.layout is torch.strided
        # There, not on the way: the device is faster at it, and the copy stays one piece.
        return found.to(memory_format=self.memory_format) if is_image else found

    def autocast(self) -> AbstractContextManager[object]:
        """The context that forwards run in."""
        dtype = _BY_AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)
