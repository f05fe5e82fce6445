"""What a forward does in addition to operations on tensors, and a graph of it would not repeat.

A tracer looks at it around each module. What is found in a submodule makes that one an operation of
its own, which runs as its author wrote it; what is found in the model's own forward is refused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.fx import Proxy

Attributes = dict[nn.Module, dict[str, object]]
_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), set, frozenset),
    *(torch.Size, torch.dtype, torch.device),
)
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has; the user's are the others."""
KEEPS_INPUTS: type | None = getattr(torch.utils.checkpoint, "_NoopSaveInputs", None)
"""The autograd function by which `torch.utils.checkpoint` itself keeps what it is given, before the
user's function is called; None: this torch, later than 2.11, has none."""


class Unkept(Exception):
    """A forward did what no graph keeps; the text says what."""


def random_state(model: nn.Module) -> dict[str, object]:
    """The state of every generator that a forward of `model` may use, by a name for messages."""
    # A comparison of texts is enough: nothing is put back from here.
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    found: dict[str, object] = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "Python's random": random.getstate(),
        "numpy": repr(numpy_state["state"]["pos"]) + str(numpy_state["state"]["key"].tobytes()),
    }
    for path, module in model.named_modules():
        for name, value in own_attributes(module).items():
            if isinstance(value, torch.Generator):
                found[f"{path}.{name}"] = value.get_state().numpy().tobytes()
            elif isinstance(value, random.Random):
                found[f"{path}.{name}"] = value.getstate()
            elif isinstance(value, (np.random.Generator, np.random.RandomState)):
                found[f"{path}.{name}"] = str(getattr(value, "bit_generator", value).__getstate__())
    return found


MODES = "a mode of torch"


def settings(least_modes: object = (0, 0)) -> dict[str, object]:
    """Settings of torch that hold for operations, besides those that a region keeps.

    Args:
        least_modes: what `MODES` counts as where fewer modes are on.
    """
    modes = (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack())
    assert isinstance(least_modes, tuple)
    return {
        "the default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "the kernels of attention": (
            torch._C._get_flash_sdp_enabled(),
            torch._C._get_mem_efficient_sdp_enabled(),
            torch._C._get_math_sdp_enabled(),
            torch._C._get_cudnn_sdp_enabled(),
        ),
        "the settings of cuDNN": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "hooks on saved tensors (activation checkpointing does)": _saved_tensors_hooks(),
        MODES: tuple(map(max, modes, least_modes)),
    }


def _saved_tensors_hooks() -> object:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def difference(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """The first name whose value differs."""
    return next((name for name, value in after.items() if before.get(name) != value), None)


@contextmanager
def no_autograd_function() -> Iterator[None]:
    """Raises Unkept where an `autograd.Function` is applied: its backward would be lost."""

    def refuse(self: object) -> None:
        if KEEPS_INPUTS is not None and getattr(self, "_forward_cls", None) is KEEPS_INPUTS:
            return  # the hooks that follow are what is told of
        name = type(self).__name__.removesuffix("Backward")
        raise Unkept(f"applies the autograd function {name}, whose backward would be lost")

    # `apply` makes one of these for its context, whatever the function is.
    BackwardCFunction.__init__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del BackwardCFunction.__init__


def own_attributes(module: nn.Module) -> dict[str, object]:
    """What a module has besides its parameters, submodules, hooks and mode."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return own | _buffers(module)


def _buffers(module: nn.Module) -> dict[str, Any]:
    # A compiled module (torch.jit) has no dict of them: no Python of it replaces one.
    return module._buffers if isinstance(module._buffers, dict) else {}


def attributes(model: nn.Module) -> Attributes:
    """The own attributes of each module, lists and dicts among them copied."""
    return {
        module: {name: _own_copy(value) for name, value in own_attributes(module).items()}
        for module in model.modules()
    }


def _own_copy(value: object) -> object:
    return copy(value) if type(value) in (list, dict, set) else value


def restore(before: Attributes) -> None:
    """Gives all modules the attributes that they had."""
    for module, values in before.items():
        # What the forward added goes, too: else the next tracing would see another model.
        for name in set(own_attributes(module)) - set(values):
            delattr(module, name)
        for name, value in values.items():
            if not _is_same(vars(module).get(name), value):
                holder = _buffers(module) if name in _buffers(module) else vars(module)
                holder[name] = _own_copy(value)  # the next forward may write into it


def keeps_results(model: nn.Module) -> tuple[nn.Module, str] | None:
    """The module and its attribute in which a forward has kept a result, for use outside."""
    for module in model.modules():
        for name, value in own_attributes(module).items():
            if _has_proxy(value):
                return module, name
    return None


def changes_buffer(before: Attributes) -> tuple[nn.Module, str] | None:
    """The module and its buffer that is another one than before, or was none."""
    for module, values in before.items():
        for name, value in _buffers(module).items():
            if name not in values or values[name] is not value:
                return module, name
    return None


def moved(*states: Attributes) -> tuple[nn.Module, str] | None:
    """The module and the attribute that has another value in each state, as a counter has."""
    first, second, third = states
    for module, values in third.items():
        for name, value in values.items():
            old, mid = first[module].get(name), second[module].get(name)
            # Changed in both calls: a counter. In the first only: a cache, which is harmless.
            if not _is_same(mid, value) and not _is_same(old, mid):
                return module, name
    return None


def _has_proxy(value: Any) -> bool:  # noqa: ANN401 - any attribute
    if isinstance(value, dict):
        return any(map(_has_proxy, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(_has_proxy, value))
    return isinstance(value, Proxy)


def _is_same(a: Any, b: Any) -> bool:  # noqa: ANN401 - any attribute
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and (a.is_meta or torch.equal(a, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(_is_same, a.values(), b.values()))
    return isinstance(a, _PLAIN) and bool(a == b)
