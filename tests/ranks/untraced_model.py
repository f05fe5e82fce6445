"""The small model with a forward that torch.fx cannot trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.ranks.tiny_model import Tiny


class Straight(torch.autograd.Function):
    """The hyperbolic tangent, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        made: Tensor = gradient * (1 - y * y)
        return made


class Untraced(Tiny):
    """Asks for its shapes and its type, and keeps a result on the model."""

    last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        if x.shape[1] != 3 or not dtype.is_floating_point:
            raise ValueError("images are wanted")
        parts: dict[str, Tensor] = {}
        for number, name in enumerate(("first", "second", "third"), start=1):
            x = Straight.apply(getattr(self, f"norm{number}")(getattr(self, name)(x)))
            if number == 2:
                x = x + parts["first"]
                x *= 0.5
            parts[name] = self.last = x
        first = parts["first"].mean((2, 3)).repeat(1, 2)[:, :8]
        made: Tensor = self.head(self.last.mean((2, 3)) + first)
        return made


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Untraced(num_outputs)
