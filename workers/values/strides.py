"""Strides: in which order the elements of a tensor lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor

Strides = tuple[int, ...]


def strides_of(tensor: Tensor) -> Strides:
    """Its own where its elements fill their memory without gaps or overlaps; else row-major."""
    shape, strides = tuple(tensor.shape), tensor.stride()
    if not tensor.numel():
        return row_major(shape)
    expected = 1
    # From the innermost dimension outwards: each begins where the one before it has ended.
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if stride != expected:
            return row_major(shape)
        expected *= size
    return strides


def row_major(shape: tuple[int, ...]) -> Strides:
    """Strides of a tensor whose last dimension changes from element to element."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return tuple(reversed(strides))


def are_alike(shape: tuple[int, ...], one: Strides, other: Strides) -> bool:
    """Whether both strides mean the same; of a dimension with one entry they mean nothing."""
    return all(n == 1 or a == b for n, a, b in zip(shape, one, other, strict=True))


def with_strides(tensor: Tensor, strides: Strides) -> Tensor:
    """A tensor with these strides; itself, if it has them."""
    if are_alike(tuple(tensor.shape), tensor.stride(), strides):
        return tensor
    made = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)
