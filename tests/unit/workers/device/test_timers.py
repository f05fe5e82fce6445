"""Time on a device, with a stand-in whose marks are reached when it is told so."""

from __future__ import annotations

import pytest
import torch

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.timers import StreamTimer
from bundlerun.workers.rank.meters import Meters, Phase

GPU = torch.device("cuda", 0)


class Gpu:
    """One stream: each piece of work takes some seconds, and is done once `run` has come to it."""

    def __init__(self) -> None:
        self.queue: list[float | Mark] = []
        self.now_s = 0.0
        self.num_marks = self.num_waits = 0

    def run(self, most: int | None = None) -> None:
        """Does all that there is, or so many pieces of it."""
        for _ in range(len(self.queue) if most is None else most):
            each = self.queue.pop(0)
            if isinstance(each, Mark):
                each.reached_s = self.now_s
            else:
                self.now_s += each


class Mark:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.reached_s: float | None = None
        gpu.num_marks += 1

    def record(self, stream: object) -> None:
        assert stream is self._gpu
        self.reached_s = None
        self._gpu.queue.append(self)

    def query(self) -> bool:
        return self.reached_s is not None

    def synchronize(self) -> None:
        self._gpu.num_waits += not self.query()
        self._gpu.run()

    def elapsed_time(self, end: Mark) -> float:
        assert self.reached_s is not None
        assert end.reached_s is not None
        return 1000 * (end.reached_s - self.reached_s)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(door, "timer", lambda device: Mark(made))
    monkeypatch.setattr(door, "current_stream", lambda device: made)
    return made


def span(timer: StreamTimer[str], gpu: Gpu, key: str, seconds: float) -> None:
    start = timer.begin()
    gpu.queue.append(seconds)
    timer.end(key, start)


def test_spans_add_up_by_the_time_of_the_device(gpu: Gpu) -> None:
    timer: StreamTimer[str] = StreamTimer(GPU)
    span(timer, gpu, "a", 2.0)
    gpu.queue.append(9.0)  # between the spans
    span(timer, gpu, "b", 1.0)
    span(timer, gpu, "a", 0.5)
    assert (timer.seconds("a"), timer.seconds("b"), timer.seconds("c")) == (2.5, 1.0, 0.0)
    timer.restart()
    assert timer.seconds("a") == 0.0


def test_a_step_waits_for_no_mark_and_few_are_kept(gpu: Gpu) -> None:
    timer: StreamTimer[str] = StreamTimer(GPU)
    for _ in range(1000):
        span(timer, gpu, "a", 0.25)
        gpu.run()
    assert gpu.num_waits == 0
    assert gpu.num_marks <= 4
    assert timer.seconds("a") == 250.0
    assert gpu.num_waits == 0


def test_marks_that_are_still_to_be_reached_are_not_used_again(gpu: Gpu) -> None:
    timer: StreamTimer[str] = StreamTimer(GPU)
    span(timer, gpu, "before", 4.0)
    timer.restart()
    span(timer, gpu, "after", 1.0)
    gpu.run(2)  # in the middle of the first span
    assert (timer.seconds("after"), timer.seconds("before")) == (1.0, 0.0)


def test_on_a_gpu_a_phase_is_what_the_gpu_does_and_launching_is_another(gpu: Gpu) -> None:
    ticks = iter(range(100))
    meters = Meters(clock=lambda: float(next(ticks)), timer=StreamTimer(GPU))

    def work(phase: Phase, seconds: float) -> None:
        with meters.phase(phase):
            gpu.queue.append(seconds)

    work("forward", 30.0)
    work("backward", 60.0)
    work("sync_wait", 5.0)
    work("data", 99.0)
    found = meters.seconds()
    assert (found["forward"], found["backward"], found["sync_wait"]) == (30.0, 60.0, 5.0)
    # One tick in each phase: launching two of them, waiting in the third, the loader.
    assert (found["launch"], found["data"]) == (2.0, 1.0)
    meters.restart()
    assert not any(meters.seconds().values())


def test_a_failure_on_the_gpu_is_not_hidden_by_a_mark(gpu: Gpu) -> None:
    meters = Meters(timer=StreamTimer(GPU))
    with pytest.raises(RuntimeError, match="device-side assert"), meters.phase("forward"):
        raise RuntimeError("CUDA error: device-side assert triggered")
    assert gpu.num_marks == 1


def test_a_rank_on_the_cpu_asks_no_device() -> None:
    meters = Meters.of(torch.device("cpu"))
    with meters.phase("forward"):
        pass
    assert meters.seconds()["forward"] > 0.0
    assert meters.seconds()["launch"] == 0.0
