"""A model of which several stages use the same parameters, in each way that a model can say so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CUTS = {1: (), 2: ("outer",), 3: ("inner", "outer"), 4: ("inner", "outer", "widen")}
"""Valid cuts by the number of parts. Of three, the first and the last use `embed` and `scale`, all
use `mix`, and the last two `kept` and `gain`, which the second and the fourth use of four."""
NAMES = {
    "embed.weight": ("embed.weight", "decode.weight"),
    "mix.weight": ("mix.weight",),
    "mix.bias": ("mix.bias",),
    "scale": ("scale",),
    "kept": ("kept",),
    "gain": ("gain",),
}
"""What is shared, with all its names."""


class Tied(nn.Module):
    """Ties a weight under two names, calls one module three times, uses two parameters directly.

    Of shape (batch, 3, 8, 8) to (batch, num_outputs).
    """

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        # First, though first used later: the order of names is not that of stages.
        self.kept = nn.Parameter(torch.linspace(-1, 1, 12), requires_grad=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 12))
        self.gain = nn.Parameter(torch.linspace(0.9, 1.1, 12))
        self.embed = nn.Linear(64, 12)
        self.mix = nn.Linear(12, 12)
        self.inner = nn.Linear(12, 12)
        self.outer = nn.Linear(12, 12)
        self.widen = nn.Linear(12, 64)
        self.decode = nn.Linear(64, 12)
        self.decode.weight = self.embed.weight
        self.head = nn.Linear(12, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.tanh(self.embed(x.flatten(2))) * self.scale))
        h = torch.tanh(self.mix(self.inner(h) + self.kept * self.gain))
        h = torch.tanh(self.mix(self.outer(h)))
        h = self.decode(torch.tanh(self.widen(h))) * self.scale + self.kept * self.gain
        return self.head(h.mean(1))


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Tied(num_outputs)
