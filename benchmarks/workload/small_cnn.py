"""A small model for small images.

Most of it is in tensors that are too large for the first bucket of a sync, which is exact.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class SmallCnn(nn.Module):
    """Three convolutions and a linear layer; cut at `third`."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.third = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.norm3 = nn.BatchNorm2d(128)
        self.head = nn.Linear(128 * 4 * 4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (batch, 3, 16, 16)."""
        x = relu(self.norm1(self.first(x)))
        x = relu(self.norm2(self.second(x)))
        x = relu(self.norm3(self.third(x)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return SmallCnn(num_outputs)
