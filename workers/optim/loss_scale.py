"""The factor of the loss in float16, without which small gradients would be 0.

    loss x scale -> gradients x scale, through all stages -> summed -> / scale -> clip, optimizer

A gradient that is too large for float16 is infinite, which no sum loses. Such a step is left out,
and the scale halved; after many good steps it is doubled. All ranks decide by the same numbers, so
all have the same scale.

Source: `torch.amp.GradScaler`, with its usual numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig

INITIAL = 65536.0
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_STEPS = 2000
"""Good steps in a row after which it grows."""
_LARGEST = 2.0**127
"""Of the powers of two that float32 has."""


class LossScale:
    """The factor, and when it changes.

    Args:
        is_dynamic: whether there is one; else it stays 1.
    """

    def __init__(self, *, is_dynamic: bool = False) -> None:
        self.is_dynamic = is_dynamic
        self.value = INITIAL if is_dynamic else 1.0
        self._num_good = 0
        """Good steps since it changed."""

    @classmethod
    def of(cls, config: TrainConfig) -> LossScale:
        """That of a run."""
        return cls(is_dynamic=config.precision == "float16")

    @property
    def kept(self) -> tuple[float, int]:
        """What has to be saved: the factor, 0 where there is none, and the good steps with it."""
        return (self.value, self._num_good) if self.is_dynamic else (0.0, 0)

    def load(self, value: float, num_good: int) -> None:
        """Takes up what `kept` gave; a value of 0 begins anew."""
        if self.is_dynamic:
            self.value, self._num_good = (value, num_good) if value else (INITIAL, 0)

    def scaled(self, loss: Tensor) -> Tensor:
        """What the backward begins with."""
        if not self.is_dynamic:
            return loss
        # A loss in float16 would itself be too large.
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * self.value

    def is_over(self) -> None:
        """Says that the gradients of a step were too large."""
        if self.is_dynamic:
            self.value, self._num_good = self.value * BACKOFF, 0

    def is_good(self) -> None:
        """Says that the step was done."""
        if not self.is_dynamic:
            return
        self._num_good += 1
        if self._num_good == GROWTH_STEPS:
            self._num_good = 0
            self.value = min(self.value * GROWTH, _LARGEST)
