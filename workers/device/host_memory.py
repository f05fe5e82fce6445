"""Memory of the CPU that a GPU copies from and to by itself.

    pinned     from torch's cache, which knows of the copies under way
    register   memory that others map, too, until it is given back

Both are only a faster way: where neither can be had, copies go through the driver's own memory.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bundlerun.workers.device.accelerator import is_gpu, module_of
from bundlerun.workers.device.interface import HasRuntime, Runtime

log = logging.getLogger(__name__)

_IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
"""File systems that are in memory only."""


@functools.cache
def can_pin() -> bool:
    """Whether torch gives memory that the GPU of this process copies from and to by itself."""
    try:
        torch.empty(1, pin_memory=True)
    except RuntimeError as exc:
        log.info("no pinned memory, so copies are slower: %s", str(exc).splitlines()[0])
        return False
    return True


def pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory of the CPU, pinned where that can be."""
    return torch.empty(shape, dtype=dtype, pin_memory=can_pin())


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
    module = module_of(device)
    if not isinstance(module, HasRuntime):
        return None
    runtime = module.cudart()
    num_bytes = memory.numel() * memory.element_size()
    code = int(runtime.cudaHostRegister(memory.data_ptr(), num_bytes, 0))
    if code:
        _forget_error(device)
        log.info("the GPU cannot map %d bytes of memory (code %d): slower copies", num_bytes, code)
        return None
    return Registration(runtime, device, memory.data_ptr())


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
