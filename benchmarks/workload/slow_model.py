"""A small model that takes its time, so that a fault finds it in the middle of something."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

PAUSE_S = float(os.environ.get("SLOW_MODEL_PAUSE_S", "0.01"))
"""Per sample of a forward."""


@torch.fx.wrap
def pause(x: Tensor) -> Tensor:
    """Waits, without computing."""
    time.sleep(PAUSE_S * x.shape[0])
    return x


class Slow(nn.Module):
    """Two parts; the first waits, without computing."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width) to scores."""
        x = torch.tanh(self.norm(self.first(pause(x))))
        scores: Tensor = self.head(torch.tanh(self.second(x)).mean((2, 3)))
        return scores


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Slow(num_outputs)
