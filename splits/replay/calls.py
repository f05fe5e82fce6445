"""Calls of torch's functions: which describe a tensor, read its numbers, draw, or overwrite."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.overrides
import torch.utils._device
import torch.utils.checkpoint
from torch import Tensor

Function = Callable[..., Any]

_DESCRIBES = {
    "__hash__",
    "__len__",
    "dim",
    "element_size",
    "get_device",
    "is_complex",
    "is_contiguous",
    "is_floating_point",
    "is_tensor",
    "ndimension",
    "nelement",
    "numel",
    "size",
    "storage_offset",
    "stride",
}
_READS = {
    "__bool__",
    "__complex__",
    "__contains__",
    "__float__",
    "__index__",
    "__int__",
    "allclose",
    "equal",
    "is_nonzero",
    "item",
    "numpy",
    "tolist",
}
_NO_WRITES = ("__index__", "__int__", "__invert__")
_DRAWS = {
    "bernoulli",
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "multinomial",
    "normal",
    "normal_",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random_",
    "randperm",
    "uniform_",
}
_ROOM = str(Path(__file__).parent) + os.sep
_NORMS = str(torch.nn.modules.batchnorm.__file__)
_LIBRARY = str(Path(torch.__file__).parent) + os.sep
_CHECKPOINT = str(torch.utils.checkpoint.__file__)
_MODES = (str(torch.utils._device.__file__), str(torch.overrides.__file__))
"""Where a mode of torch's own passes a call on to ours."""
_LOOK = _ROOM + "look.py"


def name_of(func: Function) -> str:
    """Its name; of an attribute's that of the attribute."""
    name = str(getattr(func, "__name__", ""))
    if name in ("__get__", "__set__"):
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name


def describes(func: Function) -> bool:
    """Whether it says only what a tensor is, such as its shape: no number of it."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        # Of all attributes only these give another tensor.
        return name_of(func) not in ("data", "T", "mT", "H", "mH", "real", "imag", "grad")
    return name in _DESCRIBES


def reads(func: Function) -> bool:
    """Whether it makes a plain value of a tensor's numbers."""
    return getattr(func, "__name__", "") in _READS


def draws(func: Function) -> bool:
    """Whether it makes random numbers."""
    return getattr(func, "__name__", "") in _DRAWS


def overwrites(func: Function, kwargs: Mapping[str, Any]) -> bool:
    """Whether it may write to its first argument; torch's convention: add_ does, __add__ not."""
    name = str(getattr(func, "__name__", ""))
    if name == "__setitem__" or (
        name.startswith("__i") and name not in ("__index__", "__invert__")
    ):
        return True
    return (name.endswith("_") and not name.endswith("__")) or "out" in kwargs


def is_counter(func: Function, args: Sequence[Any]) -> bool:
    """Whether it counts up one number, as a batch norm does with its calls.

    These are not numbered: a norm whose statistics are gathered elsewhere leaves it out.
    """
    if func is not Tensor.add_ or not args:
        return False
    first = args[0]
    return first.dtype is torch.int64 and first.dim() == 0


def reads_counter(func: Function) -> bool:
    """Whether it is a batch norm that reads how often it was called, for the mean of all calls.

    Not numbered either. To be asked by a mode itself, as it looks who has made the call.
    """
    return reads(func) and sys._getframe(2).f_code.co_filename == _NORMS


def is_checkpoints(func: Function) -> bool:
    """Whether `torch.utils.checkpoint` itself has made the call, before the user's function.

    Torch up to 2.11 makes an empty tensor there, to keep what the function is given. Not numbered
    either: each stage keeps its own. To be asked by a mode itself.
    """
    if func is not torch.empty:
        return False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename in _MODES:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename == _CHECKPOINT


def sets_grad_mode(func: Function) -> bool:
    """Whether it switches gradients on or off, as `no_grad` does at its begin and its end.

    Not numbered either, and done in each stage: one that begins or ends in a `no_grad` is in it.
    """
    return func is torch._C._set_grad_enabled


def may_be_unnumbered(func: Function) -> bool:
    """Whether some calls of it have no number: the first three kinds above."""
    return func is Tensor.add_ or func is torch.empty or reads(func)


def one_of(func: Function) -> float:
    """The number one, of the type that a call which reads a number gives."""
    return 1.0 if getattr(func, "__name__", "") == "__float__" else 1


def users_line() -> str:
    """`file:line` of the user's code that has made the call, seen from within a mode."""
    frame: FrameType | None = sys._getframe(1)
    outermost = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_users(file):
            return f"{file}:{frame.f_lineno}"
        if not file.startswith(_ROOM) and not outermost:
            outermost = f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return outermost or "unknown"


def line_of(exc: BaseException) -> str:
    """`file:line` of the user's code that has made the call which has raised."""
    calls = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(exc.__traceback__)]
    return next((f"{file}:{line}" for file, line in reversed(calls) if _is_users(file)), "unknown")


def _is_users(file: str) -> bool:
    return not file.startswith((_ROOM, _LIBRARY)) and not file.startswith("<")


def checkpointed() -> FrameType | None:
    """The outermost call of `torch.utils.checkpoint` that the forward of a dry run is in now."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None and frame.f_code.co_filename != _LOOK:
        code = frame.f_code
        # Of a sequence each segment is a call of its own.
        if code.co_filename == _CHECKPOINT and code.co_name != "checkpoint_sequential":
            found = frame
        frame = frame.f_back
    return found
