"""A model that reads parameters where nobody expects it, and some of them not always."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Odd(nn.Module):
    """Attention, a recurrent layer, experts of which few are used, a tied, a frozen, an unused one.

    Of shape (batch, 3, 8, 8) to (batch, num_outputs).
    """

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 12)
        self.attend = nn.MultiheadAttention(12, 2, batch_first=True)
        self.recur = nn.GRU(12, 12, batch_first=True)
        self.norm = nn.BatchNorm1d(12)
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.unused = nn.Linear(40, 40)
        self.out = nn.Linear(12, 12)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12, num_outputs)
        # Not as a module's: known to the forward only.
        self.__dict__["stashed"] = [self.out.weight, (self.out.bias,)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x.flatten(2).reshape(len(x), 8, 24)))
        h = h + self.attend(h, h, h, need_weights=False)[0]
        h = self.frozen(self.recur(h)[0])
        h = self.norm(h.transpose(1, 2)).transpose(1, 2)
        # The embedding's once more, by hand, and of `out` before it is called.
        weight, (bias,) = self.__dict__["stashed"]
        h = linear(torch.tanh(linear(h, self.embed.weight.t()[:12])), weight) + bias
        number = int(x.detach().abs().sum() * 10) % 7
        if number < 2:  # in some micro-batches only
            h = h + self.experts[number](h)
        return self.head(self.drop(self.out(h)).mean(1))


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Odd(num_outputs)
