"""The door to the device (I17): all that a rank asks of a GPU goes through here.

    stream     one for each purpose of a rank: torch has 32 to give, then the first one again
    event      a mark in a stream that another one waits for
    pinned     memory of the CPU that the GPU copies from and to by itself
    register   does the same for memory that others map, too

CUDA and ROCm have one name in torch, "cuda". On the CPU there are no streams, and nobody asks.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from bundlerun.launcher.layout.gpus import mig_slices
from bundlerun.workers.rank.meters import Phase

log = logging.getLogger(__name__)

Event = torch.cuda.Event
Stream = torch.cuda.Stream

Purpose = Literal["copy out", "copy in", "link", "snapshot"] | Phase
"""What a rank has a stream of its own for; the legs of a sync go by their phase."""

_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
"""Queues of a GPU: with the usual 8, streams that have nothing to do with each other share one, and
what waits for another rank holds up what that rank waits for. The user's own number counts."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
"""File systems that are in memory only."""


def is_gpu(device: torch.device) -> bool:
    """Whether `device` is a GPU."""
    return device.type == "cuda"


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether `tensor` is on a GPU."""
    return tensor.is_cuda


def with_random_state(device: torch.device) -> list[torch.device]:
    """The devices with a random state in addition to the CPU's: a GPU, or none."""
    return [device] if is_gpu(device) else []


def num_gpus() -> int:
    """GPUs that this process sees and can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unused_kind() -> str:
    """The kind of accelerator that torch could use here and bundlerun cannot; else empty."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "" if found is None or is_gpu(found) else found.type


def own_device(local_rank: int, environ: MutableMapping[str, str] = os.environ) -> torch.device:
    """The device of a local rank; ranks share GPUs where there are fewer. Starts CUDA."""
    environ.setdefault(_CONNECTIONS, "32")
    # Before CUDA starts: a process can use one slice only, the first that it sees.
    slices = mig_slices(environ)
    if slices:
        environ[_VISIBLE] = slices[local_rank % len(slices)]
    if not num_gpus():
        return torch.device("cpu")
    # More ranks than GPUs: they share them evenly.
    device = torch.device("cuda", local_rank % num_gpus())
    torch.cuda.set_device(device)
    return device


def gpus_of(num_ranks: int) -> list[str]:
    """The GPU of each local rank of this node, by name; slices of one GPU are one for NCCL."""
    if num_ranks > 1 and mig_slices(os.environ):
        return ["slices of one GPU"] * num_ranks
    found = [str(torch.cuda.get_device_properties(i).uuid) for i in range(num_gpus())]
    return [found[rank % len(found)] for rank in range(num_ranks)]


def current_gpu() -> torch.device:
    """The GPU that this thread's calls refer to."""
    return torch.device("cuda", torch.cuda.current_device())


def enter(device: torch.device) -> None:
    """Lets the calls of this thread refer to `device`; threads start with the first GPU."""
    if is_gpu(device):
        torch.cuda.set_device(device)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`."""
    return tensor.to(device, non_blocking=True)


@functools.cache
def stream(device: torch.device, purpose: Purpose) -> Stream:
    """The stream of this process for one purpose; made once, as torch has few to give."""
    return Stream(device)


def current_stream(device: torch.device) -> Stream:
    """What this thread's work on `device` goes to."""
    return torch.cuda.current_stream(device)


def on_stream(device: torch.device, purpose: Purpose) -> AbstractContextManager[object]:
    """Sends this thread's work to the stream of a purpose; on the CPU it does nothing."""
    return torch.cuda.stream(stream(device, purpose)) if is_gpu(device) else nullcontext()


def mark(device: torch.device) -> Event:
    """A mark after all that the current stream of a GPU has been given."""
    event = Event()
    event.record(current_stream(device))
    return event


def finish(device: torch.device) -> None:
    """Returns when the current stream has done all that it has been given."""
    if is_gpu(device):
        current_stream(device).synchronize()


def used_by(tensor: Tensor, stream: Stream) -> None:
    """Keeps the memory of a tensor until `stream` has done what it has been given."""
    if is_on_gpu(tensor):
        tensor.record_stream(stream)


def drain(device: torch.device) -> None:
    """Returns when the device has done all that this process has given it."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> tuple[int, int, int, int]:
    """Bytes of a GPU: this process's peak and what it holds now; what is free, and all there is."""
    free, capacity = torch.cuda.mem_get_info(device)
    peak, own = torch.cuda.max_memory_reserved(device), torch.cuda.memory_reserved(device)
    return peak, own, free, capacity


# --- memory of the CPU that the GPU can reach


def pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory of the CPU from torch's cache, which knows of the copies under way."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class Runtime(Protocol):
    """What we need of the CUDA runtime; codes other than 0 are failures."""

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        """Lets the GPU reach memory of the CPU."""
        ...

    def cudaHostUnregister(self, address: int) -> int:
        """Undoes that."""
        ...


@dataclass(frozen=True, slots=True)
class Registration:
    """Memory that the GPU copies from and to by itself, until `end`."""

    runtime: Runtime
    device: torch.device
    address: int

    def end(self) -> None:
        """Ends that; call it before the memory is unmapped."""
        if int(self.runtime.cudaHostUnregister(self.address)):
            _forget_error(self.device)


def register(
    memory: Tensor, device: torch.device, *, file: Path | None = None
) -> Registration | None:
    """Lets the GPU copy from and to `memory` by itself; None where it cannot: copies are slower.

    Args:
        memory: flat, mapped by this process.
        device: the GPU.
        file: what is mapped, if it has a path. A file on a disk is not registered: the kernel
            writes its pages to the disk while the GPU may change them, and newer ones refuse.
    """
    if not is_gpu(device) or not memory.numel() or (file is not None and not is_in_memory(file)):
        return None
    runtime = _runtime()
    num_bytes = memory.numel() * memory.element_size()
    code = int(runtime.cudaHostRegister(memory.data_ptr(), num_bytes, 0))
    if code:
        _forget_error(device)
        log.info("the GPU cannot map %d bytes of memory (code %d): slower copies", num_bytes, code)
        return None
    return Registration(runtime, device, memory.data_ptr())


def _runtime() -> Runtime:
    runtime: Runtime = torch.cuda.cudart()
    return runtime


def _forget_error(device: torch.device) -> None:
    """Clears the failure that the CUDA runtime keeps for the next launch of a kernel.

    That launch would raise it as if the kernel had failed; torch has no other way to read it.
    """
    try:
        torch.empty(1, device=device).fill_(1.0)
    except RuntimeError as exc:
        log.info("what was refused: %s", str(exc).splitlines()[0])


def is_in_memory(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a file is in memory only, on no disk."""
    kinds = dict(_kinds_of_devices(mounts))
    number = path.stat().st_dev
    return kinds.get(number, "") in _IN_MEMORY


def _kinds_of_devices(mounts: Path) -> Iterator[tuple[int, str]]:
    for line in mounts.read_text(encoding="utf-8").splitlines():
        # ID PARENT MAJOR:MINOR ROOT WHERE OPTIONS ... - KIND SOURCE OPTIONS
        first, _, last = line.partition(" - ")
        major, _, minor = first.split()[2].partition(":")
        yield os.makedev(int(major), int(minor)), last.split()[0]
