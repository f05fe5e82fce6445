"""Seconds per phase."""

from __future__ import annotations

import pytest

from bundlerun.workers.rank.meters import Meters


def test_phases_add_up_by_the_clock() -> None:
    times = iter([0.0, 1.0, 5.0, 7.5, 8.0, 8.25])
    meters = Meters(clock=lambda: next(times))
    for phase in ("forward", "backward", "forward"):
        with meters.phase(phase):
            pass
    assert meters.seconds()["forward"] == 1.25
    assert meters.seconds()["backward"] == 2.5


def test_a_phase_that_fails_is_timed_too() -> None:
    times = iter([0.0, 2.0])
    meters = Meters(clock=lambda: next(times))
    with pytest.raises(ValueError, match="broken"), meters.phase("data"):
        raise ValueError("broken")
    assert meters.seconds()["data"] == 2.0


def test_restart_sets_all_to_zero() -> None:
    meters = Meters()
    with meters.phase("send"):
        pass
    meters.restart()
    assert not any(meters.seconds().values())


def test_a_wait_inside_a_backward_is_no_computing() -> None:
    now = 100.0
    meters = Meters(lambda: now)
    with meters.phase("backward"):
        now += 3.0
        with meters.phase("snapshot_wait"):
            now += 7.0
        now += 1.0
    with meters.phase("snapshot_wait"):
        now += 1.0
    found = meters.seconds()
    assert (found["backward"], found["snapshot_wait"]) == (4.0, 8.0)
