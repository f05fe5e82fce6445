"""Where a rank computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bundlerun.launcher.choices import Precision


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The device and the precision of a stage.

    Args:
        device: where the stage lives.
        precision: "float32", "bfloat16" (autocast) or "float64".
        memory_format: what images are to be in; see `bundlerun.workers.model.memory_format`.
    """

    device: torch.device
    precision: Precision
    memory_format: torch.memory_format = torch.preserve_format

    def placed(self, tensor: Tensor) -> Tensor:
        """A tensor of the data on the device; floating-point numbers as wide as the stage's."""
        is_wide = self.precision == "float64" and tensor.is_floating_point()
        dtype = torch.float64 if is_wide else tensor.dtype
        # Labels and token ids stay whole numbers.
        found = tensor.to(self.device, dtype, non_blocking=True)
        is_image = found.dim() == 4 and found.layout is torch.strided
        # There, not on the way: the device is faster at it, and the copy stays one piece.
        return found.to(memory_format=self.memory_format) if is_image else found

    def autocast(self) -> AbstractContextManager[object]:
        """The context that forwards run in."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
