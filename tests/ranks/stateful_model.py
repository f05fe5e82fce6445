"""A model whose forward writes: a power iteration, a codebook, a counter, limited embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Codebook(nn.Module):
    """Adds the mean of what it has seen, which moves with each forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.seen: Tensor
        self.count: Tensor
        self.hidden: Tensor
        self.register_buffer("seen", torch.zeros(size))
        self.register_buffer("hidden", torch.zeros(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.hidden.data.copy_(self.hidden + x.detach().amax(0))
            self.count.add_(1)
        return x + self.seen.clone() + 0.01 * self.hidden.clone()


class Stateful(nn.Module):
    """Its two halves both keep something."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Linear(48, 6))
        self.tokens = nn.Embedding(4, 6, max_norm=0.5)
        self.second = nn.Linear(6, 6)
        self.codes = Codebook(6)
        self.head = spectral_norm(nn.Linear(6, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        kind = (flat.sum(1) > 0).long() + 2 * (flat[:, 0] > 0).long()
        x = torch.tanh(self.first(flat)) + self.tokens(kind)
        return self.head(self.codes(torch.tanh(self.second(x))))


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Stateful(num_outputs)


class CountsValidation(nn.Sequential):
    """Counts the forwards in which it is evaluated."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, num_outputs))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.calls.add_(1)
        return super().forward(x)  # type: ignore[no-any-return]


def build_counting(num_outputs: int) -> nn.Module:
    """A model whose state a validation moves."""
    return CountsValidation(num_outputs)
