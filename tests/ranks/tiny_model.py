"""A small model with all that makes splitting hard: batch norms, a skip, a buffer, dropout off."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Three cuttable parts, a skip connection across the second."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6, momentum=0.3)
        self.third = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(8, momentum=None)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm1(self.first(x)))
        y = torch.tanh(self.norm2(self.second(x))) + x
        z = torch.tanh(self.norm3(self.third(y)))
        return self.head(z.mean((2, 3)) + x.mean((2, 3)).repeat(1, 2)[:, :8])


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Tiny(num_outputs)
