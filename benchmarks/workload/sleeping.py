"""Layers that take a known time and no processor: a device's work, seen from its host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

_SPIN_S = 0.0003
"""A sleep is this much too long at times (measured 0.1 to 0.3 ms)."""


def sleep_until(end: float) -> None:
    """Returns at a time of `time.perf_counter`, to some microseconds where the machine is free."""
    # A sleep may end late: the last bit is spun.
    time.sleep(max(0.0, end - time.perf_counter() - _SPIN_S))
    while time.perf_counter() < end:
        pass


class SleepingLayer(nn.Module):
    """Takes its time, passes its input on, and has a gradient for each of its parameters.

    Args:
        sizes: numbers of each parameter.
        forward_s: time of a forward, seconds.
        backward_s: time of a backward, seconds; the gradients are there at its end.
        fill: every number of every gradient.
    """

    def __init__(
        self, sizes: Sequence[int], *, forward_s: float, backward_s: float, fill: float
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList([Parameter(torch.zeros(size)) for size in sizes])
        self._gradients = [torch.full((size,), fill) for size in sizes]
        self._forward_s = forward_s
        self._backward_s = backward_s

    def forward(self, x: Tensor) -> Tensor:
        """The input, later."""
        result: Tensor = _Sleep.apply(
            x, self._forward_s, self._backward_s, self._gradients, *self.weights
        )
        return result


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        forward_s: float,
        backward_s: float,
        gradients: list[Tensor],
        *weights: Tensor,
    ) -> Tensor:
        start = time.perf_counter()
        ctx.backward_s, ctx.gradients = backward_s, gradients
        result = x.clone()
        # From the start on, so that the copy above is within the time.
        sleep_until(start + forward_s)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        # All gradients at the end of the time: a layer's buckets cannot start before.
        sleep_until(time.perf_counter() + ctx.backward_s)
        return gradient, None, None, None, *ctx.gradients


class SleepingPart(nn.Module):
    """A part of a pipeline: its output has a given size, its backward two separable halves.

    The gradient of the input and that of the weight come from two functions that meet in one, so
    that schedules which split the backward can do one without the other.

    Args:
        shape: of the output.
        forward_s: time of a forward, seconds.
        input_s: time until the input's gradient is there, seconds.
        weight_s: time of the weight's gradient, seconds.
    """

    def __init__(
        self, shape: Sequence[int], *, forward_s: float, input_s: float, weight_s: float
    ) -> None:
        super().__init__()
        self.weight = Parameter(torch.ones(1))
        self.inner = Parameter(torch.ones(1))
        self._shape = tuple(shape)
        self._times = forward_s, input_s, weight_s

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of `shape`, later."""
        end = time.perf_counter() + self._times[0]
        # A part that reads data still needs the gradients inside of it.
        y = _Delayed.apply(x if x.requires_grad else self.inner, self._times[1])
        w = _Delayed.apply(self.weight, self._times[2])
        result: Tensor = _Joined.apply(y, w, (x.shape[0], *self._shape), end)
        return result


class _Delayed(torch.autograd.Function):
    """The input; its gradient, later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward_s: float) -> Tensor:  # noqa: ANN401
        ctx.backward_s = backward_s
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        end = time.perf_counter() + ctx.backward_s
        # A new tensor, as a layer makes one: autograd would copy it after the time is over.
        whole = gradient.clone(memory_format=torch.contiguous_format)
        sleep_until(end)
        return whole, None


class _Joined(torch.autograd.Function):
    """A new tensor that depends on both, at a given time."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        w: Tensor,
        shape: tuple[int, ...],
        end: float,
    ) -> Tensor:
        ctx.shapes = x.shape, w.shape
        result = torch.zeros(shape)
        sleep_until(end)
        return result

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, None, None]:
        x_shape, w_shape = ctx.shapes
        # Expanded, not filled: making a large gradient would take time that no pass has.
        to_x = gradient if gradient.shape == x_shape else gradient.new_zeros(1).expand(x_shape)
        return to_x, gradient.new_ones(w_shape), None, None
