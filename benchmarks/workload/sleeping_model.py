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

    Half of a backward makes the gradient of the input, and half those of the parameters. Where the
    input has none, as the first block's, all of it is for the parameters: there is no parameter
    without a gradient, which would hold back all sums to the end of a step.

    Args:
        forward_s: of a forward.
        num_weights: numbers of its long parameter; it has a short one, too, as most layers have.
        width: numbers that it passes on for each sample.
    """

    def __init__(self, forward_s: float, num_weights: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_weights))
        self.bias = nn.Parameter(torch.zeros(1))
        self._forward_s, self._width = forward_s, width
        self._gradients = torch.full((num_weights,), 1e-6), torch.full((1,), 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, ...) to (batch, width)."""
        end = time.perf_counter() + self._forward_s
        halves = 1 if x.requires_grad else 2
        made: Tensor = _Weight.apply(
            self.weight, self.bias, self._gradients, halves * self._forward_s
        )
        made = made.expand(x.shape[0], self._width)
        if x.requires_grad:
            made = made + _Input.apply(x, x.shape[0], self._width, self._forward_s)
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
    """A zero, and the gradients of both parameters, later."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        bias: Tensor,
        gradients: tuple[Tensor, Tensor],
        backward_s: float,
    ) -> Tensor:
        ctx.gradients, ctx.backward_s = gradients, backward_s
        return torch.zeros(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN401
        sleep_until(time.perf_counter() + ctx.backward_s)
        return *ctx.gradients, None, None


def make_stages(settings: str, num_outputs: int) -> list[nn.Sequential]:
    """The stages, each a row of blocks; `settings` as in `VARIABLE`."""
    stages, blocks, forward_ms, weight_kb, pass_kb = map(int, settings.split(","))
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


def build(num_outputs: int) -> Sequence[nn.Module]:
    """The stages that `VARIABLE` says."""
    return make_stages(os.environ[VARIABLE], num_outputs)
