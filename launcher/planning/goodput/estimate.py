"""Several runs of one setting: the mean of each term, and how far runs are apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bundlerun.launcher.planning.goodput.fleet import Fleet
from bundlerun.launcher.planning.goodput.simulate import Term, simulate
from bundlerun.launcher.planning.goodput.way import Way

MOST_RUNS, FEWEST_RUNS = 20, 3
_FAULTS = 20_000
"""Of all runs together, about: more say nothing new."""
DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """What is left for training, of the devices of the nodes that a run wants.

    Args:
        fleet: the machines.
        way: what a failure costs.
        terms: mean share of each; together 1.
        least, most: share of training, of the runs.
        runs: how many there were.
        stops_per_day: mean times that all stopped, as something was gone.
        joins_per_day: as a node came.
        lost: times that no copy of some stage was left, in all runs together.
    """

    fleet: Fleet
    way: Way
    terms: Mapping[Term, float]
    least: float
    most: float
    runs: int
    stops_per_day: float
    joins_per_day: float
    lost: int

    @property
    def share(self) -> float:
        """The share that trains."""
        return self.terms[Term.TRAINING]

    @property
    def share_of_all(self) -> float:
        """The same over all nodes, spare ones too: what is paid for."""
        return self.share * self.fleet.nodes / self.fleet.size


def num_runs(fleet: Fleet, seconds: float) -> int:
    """Fewer where each has many faults."""
    alone = fleet.failure.rate + fleet.crash.rate + fleet.drain.rate
    faults = (fleet.size * alone + fleet.num_racks * fleet.rack.rate) * seconds
    return max(FEWEST_RUNS, min(MOST_RUNS, round(_FAULTS / faults))) if faults else FEWEST_RUNS


def estimate(fleet: Fleet, way: Way, *, seconds: float, seed: int = 0, runs: int = 0) -> Goodput:
    """What is left, by simulation.

    Args:
        fleet: the machines.
        way: what a failure costs.
        seconds: of a run.
        seed: the same gives the same.
        runs: how many; 0: as many as are worth it.
    """
    count = runs or num_runs(fleet, seconds)
    # A number for each, so that settings that differ little meet the same chances.
    courses = [simulate(fleet, way, seconds, seed * 1_000_003 + run) for run in range(count)]
    whole = fleet.nodes * seconds
    shares = [course.terms[Term.TRAINING] / whole for course in courses]
    return Goodput(
        fleet=fleet,
        way=way,
        terms={term: statistics.fmean(c.terms[term] for c in courses) / whole for term in Term},
        least=min(shares),
        most=max(shares),
        runs=count,
        stops_per_day=_per_day([course.stops for course in courses], seconds),
        joins_per_day=_per_day([course.joins for course in courses], seconds),
        lost=sum(course.lost for course in courses),
    )


def _per_day(counts: list[int], seconds: float) -> float:
    return statistics.fmean(counts) * DAY_S / seconds
