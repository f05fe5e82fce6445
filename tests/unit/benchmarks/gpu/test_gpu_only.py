"""What only a GPU runs, with something in its place that answers as it would."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import restart, waiting
from benchmarks.gpu.profiled import Seen, _sort

CPU = torch.device("cpu")


class Clock:
    """A kernel waits until `over_at`; what is asked for returns, and is done, at times of its own.

    Each question takes one unit of time.
    """

    def __init__(self, returns_at: int, done_at: int, over_at: int) -> None:
        self.now = 0
        self.returns_at = returns_at
        self.ends: Iterator[int] = iter((over_at, done_at))

    def event(self) -> Event:
        return Event(self, next(self.ends))

    def act(self) -> None:
        self.now = self.returns_at


class Event:
    def __init__(self, clock: Clock, at: int) -> None:
        self._clock = clock
        self._at = at

    def record(self) -> None:
        pass

    def query(self) -> bool:
        self._clock.now += 1
        return self._clock.now >= self._at


@pytest.mark.parametrize(
    ("returns_at", "done_at", "found"),
    [
        (1, 10, (True, True)),
        (1, 150, (True, False)),  # its work waits
        (120, 10, (False, False)),  # the call itself waits
    ],
)
def test_what_waits_behind_a_kernel_is_told_from_what_goes_on(
    returns_at: int, done_at: int, found: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(returns_at, done_at, over_at=100)
    for name, stands_for in {
        "set_device": lambda device: None,
        "Stream": object,
        "Event": clock.event,
        "stream": nullcontext,
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stands_for)
    assert waiting._asked(CPU, lambda device: clock.act) == found


def seen_event(name: str, kind: DeviceType, *, is_named: bool = False) -> SimpleNamespace:
    answers = {
        "name": name,
        "device_type": kind,
        "start_ns": 1,
        "end_ns": 3,
        "is_user_annotation": is_named,
    }
    return SimpleNamespace(**{key: partial(lambda x: x, value) for key, value in answers.items()})


def test_what_the_profiler_saw_is_sorted() -> None:
    found, gpu = Seen(), DeviceType.CUDA
    for event in (
        seen_event("cudaStreamSynchronize", DeviceType.CPU),
        seen_event("cudaLaunchKernel", DeviceType.CPU),
        seen_event("Memcpy DtoH (Device -> Pinned)", gpu),
        seen_event("Memcpy HtoD (Pinned -> Device)", gpu),
        seen_event("Memcpy DtoD (Device -> Device)", gpu),
        seen_event("Memset (Device)", gpu),
        seen_event("Optimizer.step#SGD.step", gpu, is_named=True),
        seen_event("void at::native::vectorized_elementwise_kernel", gpu),
    ):
        _sort(event, found)
    span = [(1, 3)]
    assert found == Seen(kernels=span, copies_out=span, copies_in=span, num_waits=1)


@pytest.mark.parametrize("act", [restart._leave, restart._kill])
def test_the_end_of_a_process_that_holds_the_gpu_is_timed(
    act: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold(device: torch.device, is_ready: int, go: int) -> None:
        os.write(is_ready, b"1")
        os.read(go, 1)
        os._exit(0)

    monkeypatch.setattr(restart, "_hold", hold)
    bench = Bench("T", -1, disk=tmp_path, memory=tmp_path, is_gpu=False)
    start = time.monotonic()
    assert 0 <= restart._gone_after_s(bench, act) <= time.monotonic() - start  # type: ignore[arg-type]


def test_a_process_that_cannot_take_the_memory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold(device: torch.device, is_ready: int, go: int) -> None:
        raise RuntimeError("out of memory, on purpose")

    monkeypatch.setattr(restart, "_hold", hold)
    bench = Bench("T", -1, disk=tmp_path, memory=tmp_path, is_gpu=False)
    with pytest.raises(RuntimeError, match="could not take the memory"):
        restart._gone_after_s(bench, restart._leave)
