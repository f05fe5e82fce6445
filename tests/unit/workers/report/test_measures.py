from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bundlerun.workers.rank.meters import PHASES, Meters
from bundlerun.workers.report.measures import Measures


class Clock:
    """Seconds that pass only as told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measures(bundle: int, clock: Clock) -> tuple[Measures, Meters]:
    """Those of one rank of two bundles of two ranks, where all measure the same."""
    session: Any = SimpleNamespace(
        topology=SimpleNamespace(num_bundles=2, active_ranks=[0, 1, 2, 3]),
        place=SimpleNamespace(bundle=bundle),
    )

    def total(values: Sequence[float]) -> list[float]:
        return [4 * value for value in values]

    meters = Meters(clock)
    return Measures(session, meters, total), meters


def test_phases_are_means_and_a_bundle_says_what_a_microbatch_takes_it() -> None:
    clock = Clock()
    own, meters = measures(1, clock)
    with meters.phase("forward"):
        clock.now += 3.0
    with meters.phase("backward"):
        clock.now += 5.0
    own.count(num_microbatches=3, num_unreadable=1)
    own.count(num_microbatches=1, num_unreadable=0)
    shared = own.share()
    assert shared.num_unreadable == 4
    assert shared.busy_s == [0.0, 4 * 8.0 / 4]
    assert shared.phases == dict.fromkeys(PHASES, 0.0) | {"forward": 3.0, "backward": 5.0}


def test_the_end_of_an_epoch_counts_apart() -> None:
    clock = Clock()
    own, meters = measures(0, clock)
    with meters.phase("checkpoint"):
        clock.now += 1.0
    own.share()
    with own.phase("validate"):
        clock.now += 2.0
    assert own.share_end() == {"checkpoint": 0.0, "validate": 2.0}


@pytest.mark.parametrize("num_microbatches", [0, 2])
def test_an_epoch_begins_with_nothing(num_microbatches: int) -> None:
    own, _ = measures(0, Clock())
    own.count(num_microbatches=num_microbatches, num_unreadable=5)
    own.restart()
    shared = own.share()
    assert (shared.num_unreadable, shared.busy_s) == (0, [0.0, 0.0])
