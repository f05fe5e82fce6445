"""What all ranks have spent, on all ranks: played for a whole topology."""

from __future__ import annotations

import pytest
import torch

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.sheet import TOTAL, Sheet
from bundlerun.workers.shares.spent import NUM_SPENT, Spending, Spent
from bundlerun.workers.shares.tally import Tally


def numbers_of(rank: int) -> list[float]:
    """No two alike."""
    return [rank + i / 32 for i in range(NUM_SPENT)]


@pytest.mark.parametrize(
    ("widths", "devices"),
    [((1,), (1, 1, 1)), ((1, 1), (2, 2)), ((2, 1), (3, 4)), ((1, 2), (1, 2, 3))],
)
def test_all_ranks_read_what_each_has_put_in(
    widths: tuple[int, ...], devices: tuple[int, ...]
) -> None:
    topology = Topology(Shape(widths), devices)
    tallies = {
        rank: Tally(
            topology,
            topology.places[rank],
            lambda rank=rank: numbers_of(rank),
        )
        for rank in topology.active_ranks
    }
    # In the word of each bundle.
    for ranks in topology.bundles:
        words = torch.tensor([tallies[rank].own() for rank in ranks], dtype=torch.float64)
        for rank in ranks:
            assert tallies[rank].size == words.shape[1]
            tallies[rank].hear(words.sum(0).tolist())
    # Among the small sums of each stage.
    for stage in range(topology.num_stages):
        ranks = topology.stage_ranks(stage)
        slots = torch.zeros(len(ranks), tallies[ranks[0]].num_slots, dtype=torch.float64)
        for row, rank in zip(slots, ranks, strict=True):
            tallies[rank].fill(row)
        for rank in ranks:
            tallies[rank].read(slots.sum(0).tolist())
    wanted = {rank: Spent(*numbers_of(rank)) for rank in topology.active_ranks}
    assert all(tally.spent == wanted for tally in tallies.values())


def test_numbers_of_a_step_before_are_not_put_in_again() -> None:
    topology = Topology(Shape((1,)), (1, 1))
    tally = Tally(topology, topology.places[0], lambda: [1.0] * NUM_SPENT)
    tally.hear(tally.own())
    slots = torch.zeros(tally.num_slots, dtype=torch.float64)
    tally.fill(slots)
    tally.fill(again := torch.zeros_like(slots))
    assert slots.tolist() == [1.0] * NUM_SPENT + [0.0] * NUM_SPENT
    assert not again.any()


def test_a_rank_adds_up_its_steps_and_nothing_between_them() -> None:
    now = [0.0]
    sheet = Sheet.private()
    spending = Spending(sheet, lambda: 7, lambda: (2.0, 3.0), clock=lambda: now[0])
    for _ in range(2):
        spending.begin_step()
        now[0] += 4.0
        sheet.words[TOTAL["forward"]] += 1.0
        sheet.words[TOTAL["backward"]] += 2.0
        spending.end_step(3)
        # A validation, and an epoch's begin.
        now[0] += 100.0
        sheet.words[TOTAL["forward"]] += 50.0
        sheet.begin_epoch(now[0])
        sheet.words[TOTAL["forward"]] = sheet.words[TOTAL["backward"]] = 0.0
    sheet.scheduled(5.0, 0.5)
    assert Spent(*spending.so_far()) == Spent(6.0, 8.0, 0.5, 6.0, 7.0, 2.0, 3.0)
