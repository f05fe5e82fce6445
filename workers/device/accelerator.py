"""The accelerator of a rank, which messages call a GPU: its streams, marks, generator, figures.

    stream     one for each purpose of a rank: torch has 32 to give, then the first one again
    mark       an event in a stream; another stream waits for it, or a thread, which sleeps then

On the CPU there are no streams, and nobody asks for one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d
from torch.distributed import is_nccl_available

from bundlerun.launcher.layout.machine.gpus import CPU_ONLY_VARIABLE, mig_slices
from bundlerun.launcher.process import boot_id
from bundlerun.workers.device.interface import DeviceModule, Event, HasMemory, Stream
from bundlerun.workers.device.visible import show_only_own

_CUDA = "cuda"
"""CUDA and ROCm have one name in torch."""
_NO_GPU = ("cpu", "meta")
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
"""Queues of a GPU: with the usual 8, streams that have nothing to do with each other share one, and
what waits for another rank holds up what that rank waits for. The user's own number counts."""


def is_gpu(device: torch.device) -> bool:
    """Whether `device` is an accelerator, of whatever kind."""
    return device.type not in _NO_GPU


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether `tensor` is on an accelerator."""
    return is_gpu(tensor.device)


def module_of(device: torch.device) -> DeviceModule:
    """What torch has for devices of this kind."""
    return cast(DeviceModule, torch.get_device_module(device))


# --- which one


def kind(environ: Mapping[str, str] = os.environ) -> str:
    """The kind of accelerator that ranks use here; empty: they use the CPU."""
    found = _candidate(environ)
    return found if found and _has_streams(found) and _count(found) else ""


def unused_kind(environ: Mapping[str, str] = os.environ) -> str:
    """The kind of accelerator that torch could use here and bundlerun cannot; else empty."""
    found = _candidate(environ)
    return found if found and not _has_streams(found) and _count(found) else ""


def _candidate(environ: Mapping[str, str]) -> str:
    """The kind that this torch is built for, if ranks may use it; asks for no device."""
    found = None if environ.get(CPU_ONLY_VARIABLE) else torch.accelerator.current_accelerator()
    return "" if found is None else found.type


def _count(found: str) -> int:
    # Not `is_available`, which starts CUDA.
    return module_of(torch.device(found)).device_count()


def _has_streams(found: str) -> bool:
    return hasattr(torch.get_device_module(found), "current_stream")


def num_gpus(environ: Mapping[str, str] = os.environ) -> int:
    """Accelerators that this process sees and can use."""
    found = kind(environ)
    return _count(found) if found else 0


def own_device(local_rank: int, environ: MutableMapping[str, str] = os.environ) -> torch.device:
    """The device of a local rank, which this thread refers to from here on. Starts CUDA."""
    device = chosen_device(local_rank, environ)
    enter(device)
    return device


def chosen_device(local_rank: int, environ: MutableMapping[str, str] = os.environ) -> torch.device:
    """The device of a local rank; ranks share GPUs where there are fewer. Makes no context.

    Sets what CUDA is to find in the environment when it starts: from here on the process sees no
    other GPU, where that can be.
    """
    environ.setdefault(_CONNECTIONS, "32")
    # Not counted before: that may start CUDA, and nothing can be hidden then.
    index = show_only_own(local_rank, environ) if _candidate(environ) == _CUDA else local_rank
    count = num_gpus(environ)
    if not count:
        return torch.device("cpu")
    # More ranks than GPUs: they share them evenly.
    return torch.device(kind(environ), index % count)


def name_of(device: torch.device, environ: Mapping[str, str] = os.environ) -> str:
    """A name of a GPU that no other one in the world has; empty on the CPU.

    Slices of a machine's GPUs have one name, as NCCL takes no two of one GPU.
    """
    if not is_gpu(device):
        return ""
    if mig_slices(environ):
        return f"a slice, {boot_id()}"
    properties = getattr(module_of(device), "get_device_properties", None)
    number = getattr(properties and properties(device), "uuid", None)
    return f"{device}, {boot_id()}" if number is None else str(number)


def has_nccl(device: torch.device) -> bool:
    """Whether torch has NCCL for the kind of `device`; on ROCm that is RCCL.

    torch 2.14 has several classes for it, and an option which of them "nccl" stands for: groups are
    made by the class that all versions from 2.11 on have (`rank.comm.make_nccl`).
    """
    return device.type == _CUDA and is_nccl_available() and hasattr(c10d, "ProcessGroupNCCL")


# --- where this thread's work goes


def current_gpu() -> torch.device:
    """The GPU that this thread's calls refer to."""
    found = kind()
    return torch.device(found, module_of(torch.device(found)).current_device())


def enter(device: torch.device) -> None:
    """Lets the calls of this thread refer to `device`; threads start with the first GPU."""
    if is_gpu(device):
        module_of(device).set_device(device)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`."""
    return tensor.to(device, non_blocking=True)


@functools.cache
def stream(device: torch.device, purpose: str) -> Stream:
    """The stream of this process for one purpose; made once, as torch has few to give.

    Of ordinary priority: communicators have the others to themselves (`rank.comm.tune_nccl`).

    Args:
        device: a GPU.
        purpose: what it is for, in plain words; a leg of a sync goes by its phase.
    """
    return module_of(device).Stream(device)


def current_stream(device: torch.device) -> Stream:
    """What this thread's work on `device` goes to."""
    return module_of(device).current_stream(device)


def on_stream(device: torch.device, purpose: str) -> AbstractContextManager[object]:
    """Sends this thread's work to the stream of a purpose; on the CPU it does nothing."""
    if not is_gpu(device):
        return nullcontext()
    return module_of(device).stream(stream(device, purpose))


def used_by(tensor: Tensor, stream: Stream) -> None:
    """Keeps the memory of a tensor until `stream` has done what it has been given."""
    if is_on_gpu(tensor):
        tensor.record_stream(cast(torch.Stream, stream))


# --- waiting


def event(device: torch.device) -> Event:
    """A mark that is not yet in any stream; a thread that waits for it sleeps where it can."""
    make = module_of(device).Event
    # Not `torch.Event`: for that one `blocking` is a no-op (its docstring, torch 2.14).
    return make(blocking=True) if _can_sleep(device.type) else make()


def timer(device: torch.device) -> Event:
    """A mark whose `elapsed_time` to another one can be asked for."""
    return module_of(device).Event(enable_timing=True)


@functools.cache
def _can_sleep(found: str) -> bool:
    """Whether a thread that waits for an event of a kind sleeps; else it keeps a core busy."""
    try:
        module_of(torch.device(found)).Event(blocking=True)
    except TypeError:
        return False
    return True


def mark(device: torch.device) -> Event:
    """A mark after all that the current stream of a GPU has been given."""
    made = event(device)
    made.record(current_stream(device))
    return made


def finish(device: torch.device) -> None:
    """Returns when the current stream has done all that it has been given."""
    if is_gpu(device):
        # A stream's own `synchronize` would keep a core busy meanwhile.
        mark(device).synchronize()


def drain(device: torch.device) -> None:
    """Returns when the device has done all that this process has given it."""
    if is_gpu(device):
        module_of(device).synchronize(device)


def free_unused(device: torch.device) -> None:
    """Gives memory that nobody uses back to the device, where its kind keeps any."""
    empty = getattr(module_of(device), "empty_cache", None) if is_gpu(device) else None
    if empty is not None:
        empty()


# --- random numbers


def seed(device: torch.device, number: int) -> None:
    """Seeds the generators of the CPU and of `device`, the current one of this thread.

    `torch.manual_seed` gives the same numbers, and seeds all devices that the process sees.
    """
    torch.default_generator.manual_seed(number)
    if is_gpu(device):
        module_of(device).manual_seed(number)


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the generators of the CPU and of `device`, for `set_random_state`."""
    own = [module_of(device).get_rng_state(device)] if is_gpu(device) else []
    return [torch.get_rng_state(), *own]


def set_random_state(device: torch.device, state: list[Tensor]) -> None:
    """Lets the generators go on from there."""
    cpu, *own = state
    torch.set_rng_state(cpu)
    for each in own:
        module_of(device).set_rng_state(each, device)


def kept_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Afterwards the generators of the CPU and of `device` are as they were before."""
    if not is_gpu(device):
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


# --- figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a GPU: this process's peak and what it holds now; what is free, and all there is."""

    peak: int
    own: int
    free: int
    capacity: int


def memory(device: torch.device) -> Memory | None:
    """The memory of a device; None where it gives no figures."""
    if not is_gpu(device):
        return None
    module = module_of(device)
    if not isinstance(module, HasMemory):
        return None
    free, capacity = module.mem_get_info(device)
    return Memory(
        peak=module.max_memory_reserved(device),
        own=module.memory_reserved(device),
        free=free,
        capacity=capacity,
    )
