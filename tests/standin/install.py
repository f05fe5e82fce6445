"""Registers the stand-in with torch, once in a process and for good."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

from tests.standin import autocast
from tests.standin.copies import Copies
from tests.standin.device import KIND, Device
from tests.standin.draws import Generator
from tests.standin.host import HostMemory
from tests.standin.kernels import Kernels, overload, whole_operations
from tests.standin.module import Module

_KEY = "PrivateUse1"
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_kept: list[Any] = []
"""Libraries of kernels: torch takes them back when nobody holds them."""


def install(*, seed: int | None = None, name: str = "", in_one_thread: bool = False) -> Device:
    """Makes the stand-in this process's accelerator.

    Args:
        seed: draws the order that streams take turns in; None: as late as can be.
        name: of the device, the same for processes that share one; empty: a new one.
        in_one_thread: backwards are done by the thread that calls for them. torch starts its
            threads for devices at the first backward of a process, and a process that was forked
            after that has none.
    """
    device, generator, host = Device(seed, name), Generator(), HostMemory()
    backend_registration._setup_privateuseone_for_python_backend(
        rename=KIND, backend_module=Module(device, generator, host)
    )
    kernels = Kernels(device, generator)
    copies = Copies(device, host, kernels)
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(kernels.call, _KEY)
    own = torch.library.Library("aten", "IMPL")
    for operation in whole_operations():
        own.impl(operation, functools.partial(kernels.call, overload(operation)), _KEY)
    for operation, kernel in (_kernels(device, kernels) | _copies(copies)).items():
        own.impl(operation, kernel, _KEY)
    own.impl("_pin_memory", copies.pin, "CPU")
    own.impl("is_pinned", lambda tensor, device=None: host.is_pinned(tensor), "CPU")
    autocast.register(rest, own)
    _kept.extend((rest, own))
    torch.empty = _pinning(torch.empty, host)
    if in_one_thread:
        torch.autograd.set_multithreading_enabled(False)
    return device


def _kernels(device: Device, kernels: Kernels) -> dict[str, Callable[..., Any]]:
    """Operations that are not as `Kernels.call` has them, or that torch refuses to hand over."""
    aten = torch.ops.aten

    def empty(size: Sequence[int], *, memory_format: Any = None, **options: Any) -> Tensor:
        shape = torch.empty(
            size,
            dtype=options.get("dtype"),
            memory_format=memory_format or torch.contiguous_format,
            device="meta",
        )
        return kernels.like(shape)

    def empty_strided(size: Sequence[int], stride: Sequence[int], **options: Any) -> Tensor:
        return device.empty(size, stride, options.get("dtype") or torch.get_default_dtype())

    def set_(tensor: Tensor, *args: Any) -> Tensor:
        set_storage = aten.set_.source_Storage_storage_offset
        return set_storage.redispatch(_CPU, tensor, *args)

    def resize_(tensor: Tensor, size: Sequence[int], *, memory_format: Any = None) -> Tensor:
        return tensor if tuple(tensor.shape) == tuple(size) else kernels.resize(tensor, size)

    def record_stream(tensor: Tensor, stream: torch.Stream) -> None:
        device.memory.block(tensor).told.add(stream.stream_id)

    return {
        "empty.memory_format": empty,
        "empty_strided": empty_strided,
        "set_.source_Storage_storage_offset": set_,
        "resize_": resize_,
        "record_stream": record_stream,
        "convolution": functools.partial(kernels.call, aten.convolution.default),
        "convolution_backward": functools.partial(kernels.call, aten.convolution_backward.default),
    }


def _copies(copies: Copies) -> dict[str, Callable[..., Any]]:
    return {
        "_copy_from": copies.copy,
        "_copy_from_and_resize": copies.copy,
        "_to_copy": copies.to_copy,
        "_local_scalar_dense": copies.number,
    }


def _pinning(empty: Callable[..., Tensor], host: HostMemory) -> Callable[..., Tensor]:
    """`torch.empty` that can pin: torch asks for that in C++ only."""

    @functools.wraps(empty)
    def wrapper(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if not pin_memory:
            return empty(*args, **kwargs)
        shape = empty(*args, **kwargs, device="meta")
        return host.pinned(shape.shape, shape.stride(), shape.dtype)

    return wrapper
