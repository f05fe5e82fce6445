"""What torch's profiler saw of some work: kernels, copies, and calls that wait for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch._ops import OpOverload
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.spans import Span

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_OUT, _IN = "DtoH", "HtoD"


@dataclass(slots=True)
class Seen:
    """Of some work. Times are in microseconds; copies are between the GPU and the CPU."""

    kernels: list[Span] = field(default_factory=list)
    copies_out: list[Span] = field(default_factory=list)
    copies_in: list[Span] = field(default_factory=list)
    num_waits: int = 0


def seen(bench: Bench, act: Callable[[], object]) -> Seen:
    """What a GPU does for `act`, which has run before; without a GPU nothing."""
    bench.drain()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.is_gpu
    with profile(activities=activities) as profiler:
        act()
        bench.drain()
    found = Seen()
    for event in profiler.events() or ():
        _sort(event, found)
    return found


def _sort(event: Any, found: Seen) -> None:  # noqa: ANN401
    name, span = str(event.name), (event.time_range.start, event.time_range.end)
    if event.device_type != DeviceType.CUDA:
        found.num_waits += name in _WAITS
    elif name.startswith("Memcpy"):
        if _OUT in name:
            found.copies_out.append(span)
        elif _IN in name:
            found.copies_in.append(span)
    # What code is named as in the profile is no kernel.
    elif not (name.startswith(("Memset", "Optimizer.")) or _is_annotation(event)):
        found.kernels.append(span)


def _is_annotation(event: Any) -> bool:  # noqa: ANN401
    return bool(getattr(event, "is_user_annotation", False))


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do, views left out: on a GPU about as many kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.num_reads = 0
        """Of numbers, for which the host waits for the device."""

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Counts one."""
        if func is torch.ops.aten._local_scalar_dense.default:
            self.num_reads += 1
        elif not func.is_view:
            self.count += 1
        return func(*args, **(kwargs or {}))
