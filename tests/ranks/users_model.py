"""A model whose modules are not quite torch's, as users' are."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation inside, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class FineTuned(nn.Module):
    """Keeps one batch norm frozen, and the first layer while it trains."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.frozen = nn.BatchNorm2d(6)
        self.frozen.running_mean.fill_(0.5)  # type: ignore[union-attr]
        self.frozen.running_var.fill_(2.0)  # type: ignore[union-attr]
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.act = NormAct(6)
        self.third = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.SyncBatchNorm(8)
        self.norm.register_forward_hook(lambda module, inputs, output: torch.tanh(output))
        self.head = nn.Linear(8, num_outputs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.frozen.eval()
        self.first.requires_grad_(not mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.frozen(self.first(x))))
        return self.head(self.norm(self.third(x)).mean((2, 3)))


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return FineTuned(num_outputs)


class ByMomentum(nn.BatchNorm2d):
    """Uses a setting that is another one while its buffers are lent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.momentum or 0.0)


def build_by_momentum(num_outputs: int) -> nn.Module:
    """A model that cannot be prepared without being another one."""
    return nn.Sequential(nn.Conv2d(3, 6, 8), ByMomentum(6), nn.Flatten(), nn.Linear(6, num_outputs))


class Thawed(nn.Sequential):
    """Comes frozen, for use; its `train` makes it trainable."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.requires_grad_(mode)
        return self


def build_thawed(num_outputs: int) -> nn.Module:
    """A model of which nothing seems to be trained yet."""
    layers = nn.Conv2d(3, 6, 8), nn.Flatten(), nn.Tanh(), nn.Linear(6, num_outputs)
    return Thawed(*layers).eval()
