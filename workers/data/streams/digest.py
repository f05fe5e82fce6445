"""A few letters that tell one sample from another, whichever process has read it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundlerun.workers.values.nest import leaves

_PLAIN = (bool, int, str, bytes, type(None))
_FEW = 64


def digest_of(sample: object, *, is_exact: bool = False) -> str:
    """Of the numbers and texts in a sample; of other objects, such as images, of their pixels.

    Many numbers, and real ones, count roughly: processors and libraries round otherwise. Objects
    of which nothing is known count by their kind.

    Args:
        is_exact: every bit counts.
    """
    total = hashlib.sha256()
    for place, value in leaves(sample):
        total.update(f"{place} {type(value).__name__} ".encode())
        if isinstance(value, _PLAIN):
            total.update(repr(value).encode("utf-8", "surrogatepass"))
            continue
        if isinstance(value, Tensor):
            is_plain = value.dtype is not torch.bfloat16  # which numpy does not know
            value = (value if is_plain else value.float()).detach().resolve_conj().numpy()
        # An image of Pillow's says its pixels so, too; anything else becomes an array of objects.
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            said = array.tobytes() if is_exact else _said(array).encode()
            total.update(f"{array.shape} ".encode() + said)
    return total.hexdigest()[:12]


def _said(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.kind in "biu" and array.size <= _FEW:
        return str(array.tolist())
    numbers = np.abs(array) if array.dtype.kind == "c" else array
    return f"{numbers.mean(dtype=np.float64):.2e} {numbers.std(dtype=np.float64):.1e}"
