"""A model whose passes take a known time and no processor, with gradients and messages of a size.

As on a GPU: while a device works, the processor of the node is free for messages and sums.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.workload.sleeping import sleep_until

VARIABLE = "SLEEPING_MODEL"
"""Stages, blocks of a stage, milliseconds of a forward of a block, KB of its parameters, and of
what it passes on for each sample: such as 2,4,5,1000,100."""


class Block(nn.Module):
    """Passes on a tensor of its own size, later; a backward takes twice as long as a forward.

    Args:
        forward_s: of a forward; each half of the backward takes as long.
        num_weights: numbers of its parameter.
        width: numbers that it passes on for each sample.
    """

    def __init__(self, forward_s: float, num_weights: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_weights))
        self.inner = nn.Parameter(torch.zeros(1))
        self._forward_s, self._width = forward_s, width
        self._gradient = torch.full((num_weights,), 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, ...) to (batch, width)."""
        end = time.perf_counter() + self._forward_s
        first = x if x.requires_grad else self.inner
        passed = _Input.apply(first, x.shape[0], self._width, self._forward_s)
        weighed = _Weight.apply(self.weight, self._gradient, self._forward_s)
        made: Tensor = passed + weighed
        sleep_until(end)
        return made


class _Input(torch.autograd.Function):
    """Zeros of a size, and a gradient of the input's size, later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, batch: int, width: int, backward_s: float) -> Tensor:  # noqa: ANN401
        ctx.shape, ctx.backward_s = x.shape, backward_s
        return torch.zeros(batch, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        end = time.perf_counter() + ctx.backward_s
        made = torch.zeros(ctx.shape)
        sleep_until(end)
        return made, None, None, None


class _Weight(torch.autograd.Function):
    """A zero, and the gradient of a parameter, later."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor, backward_s: float) -> Tensor:  # noqa: ANN401
        ctx.gradient, ctx.backward_s = gradient, backward_s
        return torch.zeros(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        sleep_until(time.perf_counter() + ctx.backward_s)
        return ctx.gradient, None, None


def build(num_outputs: int) -> Sequence[nn.Module]:
    """The stages."""
    stages, blocks, forward_ms, weight_kb, pass_kb = map(int, os.environ[VARIABLE].split(","))
    return [
        nn.Sequential(
            *(
                Block(
                    forward_ms / 1000,
                    250 * weight_kb,
                    num_outputs if (s, b) == (stages - 1, blocks - 1) else 250 * pass_kb,
                )
                for b in range(blocks)
            )
        )
        for s in range(stages)
    ]
