"""How fast this machine copies, what the GPU can map, and whether a refusal is left to others."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from bundlerun.workers.device.host_memory import register

_MIB = 1 << 20
_NUM_COPIES = 8


class Mapped(NamedTuple):
    """Memory of a file, and its path where it has one."""

    memory: Tensor
    file: Path | None


def run(bench: Bench) -> None:
    """Copies first, then memory of each kind."""
    num_bytes = bench.sized(64, 1) * _MIB
    pageable = torch.ones(num_bytes, dtype=torch.uint8)
    bench.said.figure("CPU to CPU", _cpu_gb_per_s(pageable), "GB/s")
    on_device = torch.ones(num_bytes, dtype=torch.uint8, device=bench.device)
    bench.on_gpu.figure("pageable to GPU", gb_per_s(bench, on_device, pageable), "GB/s")
    pinned = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=bench.is_gpu)
    to_gpu, from_gpu = (
        gb_per_s(bench, *pair) for pair in ((on_device, pinned), (pinned, on_device))
    )
    bench.on_gpu.at_least("pinned to GPU", to_gpu, 20, "GB/s")
    bench.on_gpu.at_least("GPU to pinned", from_gpu, 20, "GB/s")
    for name in ("memfd", "memory", "disk"):
        with mapped(bench, name, num_bytes) as found:
            _register(bench, name, found, on_device, to_gpu)


def gb_per_s(bench: Bench, target: Tensor, source: Tensor) -> float:
    """Of a copy, the median of some."""
    target.copy_(source, non_blocking=True)
    times = [bench.ms(lambda: target.copy_(source, non_blocking=True)) for _ in range(_NUM_COPIES)]
    return source.numel() / 1e6 / median(times)


def _cpu_gb_per_s(source: Tensor) -> float:
    """Of a copy in CPU memory, by the clock of the CPU."""
    target, times = source.clone(), []
    for _ in range(_NUM_COPIES):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return source.numel() / 1e9 / median(times)


@contextmanager
def mapped(bench: Bench, kind: str, num_bytes: int) -> Iterator[Mapped]:
    """Shared memory of a file: nameless, in a folder in memory, or on a disk."""
    folder = {"memory": bench.memory, "disk": bench.disk}.get(kind)
    if folder is None:
        descriptor, path = os.memfd_create("bundlerun-gpu"), None
    else:
        descriptor, name = tempfile.mkstemp(dir=folder)
        path = Path(name)
    try:
        os.ftruncate(descriptor, num_bytes)
        memory = torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)
        memory.fill_(1)
        yield Mapped(memory, path)
    finally:
        os.close(descriptor)


def _register(bench: Bench, kind: str, found: Mapped, on_device: Tensor, to_gpu: float) -> None:
    """What the door makes of it, and whether the next kernel hears of a refusal."""
    registration = register(found.memory, bench.device, file=found.file)
    where = f"shared memory ({kind})"
    bench.on_gpu.note(where, "mapped" if registration is not None else "not mapped")
    error = _error_of_next_kernel(bench)
    bench.on_gpu.holds(f"{where}: the next kernel", not error, error or "runs", "runs")
    if registration is None:
        return
    share = gb_per_s(bench, on_device, found.memory) / to_gpu
    bench.on_gpu.at_least(f"{where} to GPU, of pinned", share, 0.95)
    registration.end()


def _error_of_next_kernel(bench: Bench) -> str:
    try:
        torch.zeros(1, device=bench.device).add_(1.0)
        bench.drain()
    except RuntimeError as exc:
        return str(exc).splitlines()[0]
    return ""
