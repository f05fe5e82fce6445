"""`torch.autocast` on the device: products in the lower precision, losses in the higher one.

The lists are the part of torch's own for CUDA that models here need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.standin.device import KIND
from tests.standin.kernels import mapped, overload

_KEY = "AutocastPrivateUse1"
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_LOWER = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm")
_HIGHER = (
    "cross_entropy_loss",
    "nll_loss",
    "log_softmax.int",
    "softmax.int",
    "layer_norm",
    "group_norm",
    "mse_loss",
    "pow.Tensor_Scalar",
    "sum",
)


def register(rest: torch.library.Library, own: torch.library.Library) -> None:
    """Registers it.

    Args:
        rest: kernels for all operations that have no other.
        own: kernels of torch's operations.
    """
    rest.fallback(torch.library.fallthrough_kernel, _KEY)
    for name in _LOWER:
        own.impl(name, _casting(name, lambda: torch.get_autocast_dtype(KIND)), _KEY)
    for name in _HIGHER:
        own.impl(name, _casting(name, lambda: torch.float32), _KEY)


def _casting(name: str, wanted: Callable[[], torch.dtype]) -> Callable[..., Any]:
    operation = overload(f"aten::{name}")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = wanted()
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            cast = mapped((args, kwargs), lambda value: _cast(value, dtype))
            return operation(*cast[0], **cast[1])

    return kernel


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_cast = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_cast and value.dtype != torch.float64 else value
