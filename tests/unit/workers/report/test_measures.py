from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.sheet import TOTAL
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank.meters import PHASES, Meters
from bundlerun.workers.report.measures import Gpus, Measures
from bundlerun.workers.shares.sending import Sending

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


class Clock:
    """Seconds that pass only as told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measures(bundle: int, clock: Clock, device: torch.device = CPU) -> tuple[Measures, Meters]:
    """Those of one rank of two bundles of two ranks, where all measure the same."""
    topology = Topology(Shape((1, 1)), (4,))
    place = next(place for place in topology.places if place.bundle == bundle)
    session: Any = SimpleNamespace(topology=topology, place=place, device=device, nodes=())

    def total(values: Sequence[float]) -> list[float]:
        return [4 * value for value in values]

    meters = Meters(clock)
    return Measures(session, meters, total, Sending(session, meters.sheet)), meters


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
    on_cpu = [phase for phase in PHASES if phase != "launch"]
    assert shared.phases == dict.fromkeys(on_cpu, 0.0) | {"forward": 3.0, "backward": 5.0}
    assert shared.gpus is None


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


def test_gpus_are_counted_and_their_memory_is_told_by_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = door.Memory(peak=700, own=1, free=1, capacity=1)
    monkeypatch.setattr("bundlerun.workers.report.measures.memory", lambda device: found)
    own, meters = measures(1, Clock(), GPU)
    meters.sheet.words[TOTAL["launch"]] = 2.0
    shared = own.share()
    assert shared.phases["launch"] == 2.0
    # Rank 2 has stage 0 of bundle 1; of the others the stand-in for the sum says nothing.
    assert shared.gpus == Gpus(count=4, peak_bytes=(4 * 700, 0))


def test_a_kind_of_gpu_without_figures_is_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bundlerun.workers.report.measures.memory", lambda device: None)
    assert measures(0, Clock(), GPU)[0].share().gpus == Gpus(count=4, peak_bytes=(0, 0))
