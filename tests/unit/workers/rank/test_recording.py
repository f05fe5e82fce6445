"""What is kept of one step: by the clock of the rank, and by that of a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from bundlerun.launcher.layout.schedule import Action, Pass
from bundlerun.launcher.run_folder.measured import Span
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.timers import StreamTimer
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.rank.recording import Recording
from tests.unit.workers.device.test_timers import GPU, Gpu, Mark

CPU = torch.device("cpu")


def test_a_recording_has_what_was_done_of_which_pass_and_the_meters_count_on() -> None:
    meters, ticks = Meters(clock=lambda: 0.0), itertools.count()
    meters.does(Action(Pass.FORWARD, 9), 3)  # nobody records: nothing is kept of it
    with meters.phase("forward"):
        pass
    meters.recording = Recording(4, CPU, lambda: float(next(ticks)))
    recording = meters.recording
    meters.does(Action(Pass.FORWARD, 0), 4)
    with meters.phase("forward"):
        pass
    meters.does(Action(Pass.BACKWARD, 1, 2), 4)
    with meters.phase("backward"), meters.phase("collect"):
        pass
    meters.does(Action(Pass.FORWARD, 0), 5)
    with meters.phase("data"):
        pass
    recording.close()
    meters.recording = None
    assert recording.spans() == (
        Span("forward", 0.0, 1.0, "F0", 0),
        Span("backward", 2.0, 5.0, "B1.2", 0),
        Span("collect", 3.0, 4.0, "", 0),
        Span("data", 6.0, 7.0, "F0", 1),
    )


def test_what_a_gpu_does_is_told_by_its_own_clock_and_nobody_waits_inside_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu()
    monkeypatch.setattr(door, "timer", lambda device: Mark(gpu))
    monkeypatch.setattr(door, "current_stream", lambda device: gpu)
    monkeypatch.setattr(door, "enter", lambda device: None)
    meters = Meters(timer=StreamTimer(GPU))
    # The host is far ahead: it is at 100 s when the last mark is reached, 7 s of the GPU later.
    meters.recording = recording = Recording(0, GPU, lambda: 100.0)
    gpu.queue.append(1.0)
    meters.does(Action(Pass.FORWARD, 0), 0)
    with meters.phase("forward"):
        gpu.queue.append(2.0)
    with meters.phase("backward"):
        gpu.queue.append(4.0)
    recording.close()
    assert gpu.num_waits == 0
    assert recording.spans() == (
        Span("forward", 94.0, 96.0, "F0", 0),
        Span("backward", 96.0, 100.0, "F0", 0),
    )


def test_a_gpu_that_fails_takes_no_more_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(door, "timer", lambda device: Mark(gpu))
    monkeypatch.setattr(door, "current_stream", lambda device: gpu)
    meters = Meters(timer=StreamTimer(GPU))
    meters.recording = Recording(0, GPU)
    with pytest.raises(ValueError, match="broken"), meters.phase("forward"):
        raise ValueError("broken")
    # The first one of the recording, and that of each timer where the phase began.
    assert gpu.num_marks == 3
