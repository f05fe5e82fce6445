"""A small model that computes wrongly on one node from some forward on, as a broken device."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from tests.ranks.tiny_model import Tiny

NODE = "n2"
AFTER = 60
"""Forwards of that node that are right."""


class _Flip(torch.autograd.Function):
    """The last bit but some of one number, in the backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        gradient.view(-1).view(torch.int64)[-1] ^= 1 << 40
        return gradient


class Faulty(Tiny):
    """Wrong gradients, which the sum of all gives to everybody."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self._left = AFTER

    def forward(self, x: Tensor) -> Tensor:
        self._left -= 1
        found: Tensor = super().forward(x)
        is_wrong = self._left < 0 and os.environ.get("BUNDLERUN_NODE_NAME") == NODE
        return _Flip.apply(found) if is_wrong and found.requires_grad else found


def build(num_outputs: int) -> nn.Module:
    """The model."""
    return Faulty(num_outputs)
