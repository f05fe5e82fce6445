"""What is simulated against what can be worked out by a formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bundlerun.launcher.planning.goodput.estimate import estimate, num_runs
from bundlerun.launcher.planning.goodput.fleet import Absence, Fleet
from bundlerun.launcher.planning.goodput.simulate import Term, simulate
from bundlerun.launcher.planning.goodput.way import Keeps, Way, best_interval_s, with_best_interval

DAY = 86400.0
NOTHING = Way(
    name="", keeps=Keeps.MEMORY, recovery_s=0.0, join_s=0.0, restart_s=0.0, checkpoint_every_s=60.0
)
"""A failure costs nothing but the node, and the loss of all nodes next to nothing."""


def share(
    fleet: Fleet, way: Way = NOTHING, days: float = 1000.0, term: Term = Term.TRAINING
) -> float:
    course = simulate(fleet, way, days * DAY, seed=1)
    assert sum(course.terms.values()) == pytest.approx(fleet.nodes * days * DAY)
    assert min(course.terms.values()) >= 0.0
    return course.terms[term] / (fleet.nodes * days * DAY)


def binomial(size: int, p: float) -> list[float]:
    return [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]


def test_without_failures_only_checkpoints_and_snapshots_cost() -> None:
    way = replace(NOTHING, checkpoint_every_s=900.0, checkpoint_s=100.0, snapshot_cost=0.01)
    fleet = Fleet(nodes=10)
    assert share(fleet, way) == pytest.approx(0.9 * 0.99, rel=1e-4)
    assert share(fleet, way, term=Term.SNAPSHOTS) == pytest.approx(0.9 * 0.01, rel=1e-4)
    assert share(fleet, way, term=Term.CHECKPOINTS) == pytest.approx(0.1, rel=1e-3)


def test_devices_that_make_no_bundle_are_idle_from_the_first() -> None:
    assert share(Fleet(nodes=3, devices=4, bundle=8), term=Term.IDLE) == pytest.approx(1 / 3)


def test_nodes_that_are_down_are_as_many_as_if_each_were_alone() -> None:
    """As in a queue without waiting: each is away for its share of the time (M/M/inf, finite)."""
    repair, visit = Absence(every_s=9 * DAY, away_s=DAY), Absence(every_s=18 * DAY, away_s=DAY)
    fleet = Fleet(nodes=50, failure=repair, drain=visit)
    p = (1 / 9 + 1 / 18) / (1 + 1 / 9 + 1 / 18)
    assert fleet.away_share == pytest.approx(p)
    assert share(fleet, days=500) == pytest.approx(1 - p, rel=0.01)


def test_spares_take_the_places_of_as_many_nodes_as_they_are() -> None:
    fleet = Fleet(nodes=20, spares=3, failure=Absence(every_s=9 * DAY, away_s=DAY))
    lacking = sum(max(0, down - 3) * p for down, p in enumerate(binomial(23, 0.1)))
    assert share(fleet, days=3000, term=Term.DOWN) == pytest.approx(lacking / 20, rel=0.1)


def test_nodes_that_lack_a_neighbour_for_their_bundle_are_idle() -> None:
    fleet = Fleet(nodes=12, devices=8, bundle=32, failure=Absence(every_s=9 * DAY, away_s=DAY))
    working = sum((12 - down) // 4 * 4 * p for down, p in enumerate(binomial(12, 0.1)))
    assert share(fleet, days=2000) == pytest.approx(working / 12, rel=0.02)
    idle = sum((12 - down) % 4 * p for down, p in enumerate(binomial(12, 0.1)))
    assert share(fleet, days=2000, term=Term.IDLE) == pytest.approx(idle / 12, rel=0.05)


def test_a_recovery_that_is_short_costs_its_time_as_often_as_something_fails() -> None:
    fleet = Fleet(nodes=100, crash=Absence(every_s=10 * DAY))
    way = replace(NOTHING, recovery_s=10.0)
    rate = 100 / (10 * DAY)
    cost = share(fleet, way, term=Term.RECOVERING)
    assert cost == pytest.approx(10 * rate, rel=0.02)


def test_a_failure_while_all_recover_begins_it_anew() -> None:
    """Renewal: what is left is exp(-rate x recovery)."""
    fleet = Fleet(nodes=100, crash=Absence(every_s=DAY))
    way = replace(NOTHING, recovery_s=500.0, per_node_s=3.64)
    assert share(fleet, way, days=100) == pytest.approx(math.exp(-864 * 100 / DAY), rel=0.02)


def test_going_back_to_checkpoints_costs_what_the_formula_says() -> None:
    """Daly, 2006: T work and C checkpoint take exp(rate R) (exp(rate (T + C)) - 1) / rate."""
    fleet = Fleet(nodes=100, crash=Absence(every_s=10 * DAY))
    way = replace(
        NOTHING, keeps=Keeps.DISK, recovery_s=600.0, restart_s=600.0,
        checkpoint_every_s=3000.0, checkpoint_s=200.0,
    )  # fmt: skip
    rate = 100 / (10 * DAY)
    takes = math.exp(rate * 600) * (math.exp(rate * 3200) - 1) / rate
    assert share(fleet, way, days=500) == pytest.approx(3000 / takes, rel=0.015)


def test_the_interval_by_itself_is_near_the_best() -> None:
    fleet = Fleet(nodes=100, crash=Absence(every_s=10 * DAY))
    way = replace(NOTHING, keeps=Keeps.DISK, recovery_s=60.0, restart_s=60.0, checkpoint_s=60.0)
    best = with_best_interval(way, fleet)
    assert best.checkpoint_every_s == pytest.approx(math.sqrt(2 * 60 * 8640))
    least = share(fleet, best, days=300)
    for factor in (0.4, 2.5):
        other = replace(way, checkpoint_every_s=factor * best.checkpoint_every_s)
        assert share(fleet, other, days=300) < least
    assert best_interval_s(Fleet(nodes=9), 60.0) == math.inf


def test_the_step_under_way_is_done_again_and_no_more() -> None:
    fleet = Fleet(nodes=10, crash=Absence(every_s=DAY))
    way = replace(NOTHING, step_s=100.0, snapshot_steps=4, checkpoint_every_s=math.inf)
    course = simulate(fleet, way, 1000 * DAY, seed=1)
    assert course.stops == pytest.approx(10_000, rel=0.05)
    # On average half of what lies between two snapshots.
    assert course.terms[Term.REDONE] / 10 / course.stops == pytest.approx(200, rel=0.03)


def test_a_rack_takes_all_of_its_nodes() -> None:
    fleet = Fleet(nodes=40, rack_nodes=8, rack=Absence(every_s=9 * DAY, away_s=DAY))
    assert share(fleet, days=2000) == pytest.approx(0.9, rel=0.01)
    course = simulate(fleet, NOTHING, 2000 * DAY, seed=1)
    assert course.stops == pytest.approx(5 * 200, rel=0.07)
    assert course.joins == pytest.approx(course.stops, rel=0.01)


@pytest.mark.parametrize(
    ("bundle", "is_lost"),
    [(8, False), (16, False), (32, True)],
    ids=["a bundle in a node", "four copies, a rack has three", "two copies, a rack has one each"],
)
def test_where_a_rack_has_all_copies_of_a_stage_the_checkpoint_is_taken(
    bundle: int, is_lost: bool
) -> None:
    nodes, rack = (8, 6) if bundle == 16 else (8, 5)
    fleet = Fleet(
        nodes=nodes, devices=8, bundle=bundle, rack_nodes=rack,
        rack=Absence(every_s=100 * DAY, away_s=0.001),
    )  # fmt: skip
    way = replace(NOTHING, checkpoint_every_s=DAY, restart_s=DAY / 24)
    course = simulate(fleet, way, 1000 * DAY, seed=3)
    assert course.stops > 5
    assert (course.lost > 0) is is_lost
    assert (course.terms[Term.REDONE] > 0) is is_lost


def test_too_few_nodes_wait_for_more() -> None:
    fleet = Fleet(nodes=4, failure=Absence(every_s=9 * DAY, away_s=DAY))
    way = replace(NOTHING, min_nodes=4)
    assert share(fleet, way, days=2000) == pytest.approx(0.9**4, rel=0.05)


def test_the_same_seed_gives_the_same_and_another_one_another() -> None:
    fleet = Fleet(nodes=30, spares=1, failure=Absence(every_s=20 * DAY, away_s=DAY))
    one, same, other = (
        estimate(fleet, NOTHING, seconds=30 * DAY, seed=seed, runs=4) for seed in (1, 1, 2)
    )
    assert one == same
    assert one.share != other.share
    assert one.least < one.share < one.most
    assert one.share_of_all == pytest.approx(one.share * 30 / 31)
    assert sum(one.terms.values()) == pytest.approx(1.0)


def test_runs_are_fewer_where_each_has_many_failures() -> None:
    def runs(nodes: int) -> int:
        return num_runs(Fleet(nodes=nodes, failure=Absence(every_s=100 * DAY)), 10 * DAY)

    assert runs(10) == 20
    assert 3 < runs(30_000) < 20
    assert runs(1_000_000) == 3
    assert num_runs(Fleet(nodes=10), DAY) == 3
