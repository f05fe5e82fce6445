"""What torch's profiler saw of some work: kernels, copies, and calls that wait for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench, turn

Span = tuple[float, float]
"""From when to when."""
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_STEPS = 3
_OUT, _IN = "DtoH", "HtoD"


@dataclass(slots=True)
class Seen:
    """Of some work. Times are in nanoseconds; copies are between the GPU and the CPU."""

    kernels: list[Span] = field(default_factory=list)
    copies_out: list[Span] = field(default_factory=list)
    copies_in: list[Span] = field(default_factory=list)
    num_waits: int = 0


def seen(bench: Bench, act: Callable[[], object]) -> Seen:
    """What a GPU does for `act`, which has run before; without a GPU nothing."""
    found = Seen()
    bench.drain()
    if not bench.is_gpu:
        act()
        bench.drain()
        return found
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        act()
        bench.drain()
    # Not `events()`: it builds a tree of them, which takes half a minute for a few steps.
    results: Any = profiler.profiler
    for event in results.kineto_results.events():
        _sort(event, found)
    return found


def _sort(event: Any, found: Seen) -> None:  # noqa: ANN401
    name, span = str(event.name()), (event.start_ns(), event.end_ns())
    if event.device_type() != DeviceType.CUDA:
        found.num_waits += name in _WAITS
    elif name.startswith("Memcpy"):
        if _OUT in name:
            found.copies_out.append(span)
        elif _IN in name:
            found.copies_in.append(span)
    # What code is named as in the profile is no kernel.
    elif not (name.startswith(("Memset", "Optimizer.")) or event.is_user_annotation()):
        found.kernels.append(span)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one step: times that the host waits for the device, and what it gives the device to do.

    On a GPU that is kernels, on the stand-in operations of torch.
    """

    waits: float
    operations: float


def counts_of(bench: Bench, step: Callable[[], object]) -> Counts:
    """Counts of a step that has run before."""
    if bench.stand_in is not None:
        waits, operations = bench.stand_in.num_waits, bench.stand_in.num_operations
        step()
        return Counts(bench.stand_in.num_waits - waits, bench.stand_in.num_operations - operations)
    # The profiler waits at its ends, too: that falls out of the difference.
    one, more = (seen(bench, turn(step, steps)) for steps in (1, 1 + _STEPS))
    return Counts(
        (more.num_waits - one.num_waits) / _STEPS, (len(more.kernels) - len(one.kernels)) / _STEPS
    )


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time in stretches that do not touch, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def share_under(spans: Iterable[Span], cover: Iterable[Span]) -> float:
    """The part of the time of `spans` that lies within `cover`; 1 if there are none."""
    # Copies may overlap each other: each is counted for itself.
    covers = joined(cover)
    total = under = 0.0
    for start, end in spans:
        total += end - start
        under += sum(max(0.0, min(end, last) - max(start, first)) for first, last in covers)
    return under / total if total else 1.0
