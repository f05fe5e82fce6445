"""What waits behind a kernel that waits, as a receive of NCCL does until its message comes.

    side stream      |==== a kernel that does nothing for half a second ====|
    this thread       |asks for something: does the call return meanwhile?
    another stream     |its work: is it done meanwhile?

Each row begins in a process that has used nothing yet, as the first step of a rank does. Links and
snapshots rely on the rows that have something wanted; the others say what no link may rely on.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import conv2d

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.forked import in_fork

_CYCLES = 1_000_000_000
"""About half a second on a GPU of 2 GHz."""
_GIB = 1 << 30
_CACHED = (1 << 10, 1 << 23)
"""Of torch's pool for small tensors and of that for large ones."""
_MOST_S = 10.0
_NUM_STREAMS = 32
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"

Prepare = Callable[[torch.device], Callable[[], object]]
"""Makes ready what is needed before the kernel waits; gives what is then asked for."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is asked for, and whether it is relied on to go on."""

    prepare: Prepare
    is_relied_on: bool = False


def _loaded_kernel(device: torch.device) -> Callable[[], object]:
    x = torch.zeros(1 << 10, device=device)
    x.add_(1.0)
    return lambda: x.add_(1.0)


def _unloaded_kernel(device: torch.device) -> Callable[[], object]:
    x = torch.empty(1 << 10, device=device)
    return lambda: x.erfinv_()


def _first_convolution(device: torch.device) -> Callable[[], object]:
    images = torch.empty(8, 16, 32, 32, device=device)
    weight = torch.empty(16, 16, 3, 3, device=device)
    return lambda: conv2d(images, weight)


def _allocation(device: torch.device) -> Callable[[], object]:
    return lambda: torch.empty(_GIB, dtype=torch.uint8, device=device)


def _release(device: torch.device) -> Callable[[], object]:
    # Dropped at once: torch's cache has it, and gives it back when asked.
    torch.empty(_GIB, dtype=torch.uint8, device=device)
    return torch.cuda.empty_cache


def _pinned_allocation(_: torch.device) -> Callable[[], object]:
    return lambda: torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)


def _registration(_: torch.device) -> Callable[[], object]:
    memory = mmap.mmap(-1, 1 << 26)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    runtime: Any = torch.cuda.cudart()
    return lambda: runtime.cudaHostRegister(address, 1 << 26, 0)


def _copy(device: torch.device, *, is_pinned: bool, is_out: bool) -> Callable[[], object]:
    there = torch.zeros(1 << 24, device=device)
    here = torch.zeros(1 << 24, pin_memory=is_pinned)
    target, source = (here, there) if is_out else (there, here)
    target.copy_(source, non_blocking=True)
    return lambda: target.copy_(source, non_blocking=True)


ROWS: Mapping[str, Row] = {
    "a kernel that is loaded": Row(_loaded_kernel, True),
    "pinned memory to the GPU": Row(partial(_copy, is_pinned=True, is_out=False), True),
    "the GPU to pinned memory": Row(partial(_copy, is_pinned=True, is_out=True), True),
    "pageable memory to the GPU": Row(partial(_copy, is_pinned=False, is_out=False)),
    "a kernel that is not loaded": Row(_unloaded_kernel),
    "the first convolution": Row(_first_convolution),
    "1 GiB from the driver": Row(_allocation),
    "1 GiB back to the driver": Row(_release),
    "pinned memory from the driver": Row(_pinned_allocation),
    "registering memory": Row(_registration),
}


def run(bench: Bench) -> None:
    """Row by row, then streams that have nothing to do with each other."""
    for name, row in ROWS.items():
        if not bench.is_gpu:
            bench.on_gpu.cannot(name, "goes on" if row.is_relied_on else "")
            continue
        returned, is_done = in_fork(partial(_asked, bench.device, row.prepare), limit_s=20)
        words = "goes on" if is_done else "its work waits" if returned else "its call waits"
        if row.is_relied_on:
            bench.on_gpu.holds(name, is_done, words, "goes on")
        else:
            bench.on_gpu.note(name, words)
    for connections in (32, 8, 1):
        _streams(bench, connections)


def _asked(device: torch.device, prepare: Prepare) -> tuple[bool, bool]:
    """Whether the call returned while the kernel waited, and whether its work was done then."""
    torch.cuda.set_device(device)
    act = prepare(device)
    side, work = torch.cuda.Stream(), torch.cuda.Stream()
    over, done = torch.cuda.Event(), torch.cuda.Event()
    with torch.cuda.stream(work):
        for num_bytes in _CACHED:  # so that a result needs nothing from the driver
            torch.empty(num_bytes, dtype=torch.uint8, device=device)
    for event in over, done:  # made by its first use
        event.record()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(_CYCLES)
        over.record()
    with torch.cuda.stream(work):
        kept = act()  # else its memory would go back, and that may wait as well
        returned = not over.query()
        done.record()
    is_done = _comes_first(done, over)
    torch.cuda.synchronize()
    del kept
    return returned, returned and is_done


def _comes_first(event: torch.cuda.Event, other: torch.cuda.Event) -> bool:
    """Whether one event happens before another one."""
    deadline = time.monotonic() + _MOST_S
    while time.monotonic() < deadline:
        # In this order: both may happen between two questions.
        if event.query():
            return not other.query()
        if other.query():
            return False
    raise TimeoutError(f"a kernel of half a second is not over in {_MOST_S:g} s")


def _streams(bench: Bench, connections: int) -> None:
    what = f"streams of 31 that go on, {connections} connection(s)"
    if not bench.is_gpu:
        bench.on_gpu.cannot(what, ">= 31" if connections == _NUM_STREAMS else "")
        return
    environ = {_CONNECTIONS: str(connections)}
    count = in_fork(partial(_num_going_on, bench.device), environ, limit_s=20)
    if connections == _NUM_STREAMS:
        bench.on_gpu.at_least(what, count, _NUM_STREAMS - 1)
    else:
        bench.on_gpu.figure(what, count)


def _num_going_on(device: torch.device) -> int:
    """How many other streams finish a kernel while one stream waits and has more to do."""
    torch.cuda.set_device(device)
    first, *others = (torch.cuda.Stream() for _ in range(_NUM_STREAMS))
    numbers = [torch.zeros(1, device=device) for _ in others]
    events = [torch.cuda.Event() for _ in others]
    over = torch.cuda.Event()
    over.record()
    for number, event in zip(numbers, events, strict=True):
        number.add_(1.0)
        event.record()
    torch.cuda.synchronize()
    with torch.cuda.stream(first):
        torch.cuda._sleep(_CYCLES // 2)
        torch.cuda._sleep(_CYCLES // 2)
        over.record()
    for stream, number, event in zip(others, numbers, events, strict=True):
        with torch.cuda.stream(stream):
            number.add_(1.0)
            event.record()
    count, deadline = 0, time.monotonic() + _MOST_S
    while count < len(events) and time.monotonic() < deadline:
        found = sum(event.query() for event in events)
        if over.query():
            break
        count = found
    torch.cuda.synchronize()
    return count
