"""Tensors in flat memory, one after the other: where each begins; its bytes; dtypes by name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bundlerun.launcher.layout.rounding import rounded_up

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

_CACHE_LINE = 64
"""Bytes; where torch's allocator begins tensors, too."""


def aligned(num_bytes: int) -> int:
    """Rounded up, so that what follows shares no cache line with it."""
    return rounded_up(num_bytes, _CACHE_LINE)


def laid_out(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where pieces of these sizes begin, one after the other, and the end of the last; in bytes."""
    begins, end = [], 0
    for size in sizes:
        begins.append(end)
        end += aligned(size)
    return begins, end


def num_bytes_of(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of the elements of such a tensor."""
    return prod(shape) * dtype.itemsize


def bytes_of(tensor: Tensor) -> Bytes:
    """The bytes of a CPU tensor, (num_bytes,), row-major; a copy only if it is not contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    # Through uint8, as numpy has no bfloat16.
    found: Bytes = flat.view(torch.uint8).numpy()
    return found


@functools.cache
def name_of_dtype(dtype: torch.dtype) -> str:
    """Its name in torch, such as float32."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        ValueError: torch has none.
    """
    dtype = getattr(torch, name, None)
    # The name comes from a file: torch has other attributes, too.
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {name!r}")
    return dtype
