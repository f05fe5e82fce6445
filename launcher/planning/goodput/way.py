"""What a failure costs, by who restarts the ranks and where their state is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from bundlerun.launcher.planning.goodput.fleet import Fleet


class Keeps(Enum):
    """Where the state of a run is that goes on after a failure."""

    MEMORY = "in the memory of the nodes"
    DISK = "on disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to go on after a failure; times in seconds.

    Args:
        name: for a reader.
        keeps: where the state is: in memory the step under way is done again, from disk all since
            the last checkpoint.
        recovery_s: from a failure to training again.
        join_s: what all stand still for as a node comes.
        restart_s: from a failure that took every copy of some stage, to training again.
        per_node_s: more of each of the three, for each node that takes part.
        step_s: of a step.
        snapshot_steps: steps from a snapshot in memory to the next.
        snapshot_cost: share of the time that they take.
        checkpoint_every_s: of training, from a checkpoint to the next; inf: none.
        checkpoint_s: that all wait for one.
        min_nodes: with fewer nothing goes on.
    """

    name: str
    keeps: Keeps
    recovery_s: float
    join_s: float
    restart_s: float
    per_node_s: float = 0.0
    step_s: float = 0.0
    snapshot_steps: int = 1
    snapshot_cost: float = 0.0
    checkpoint_every_s: float = math.inf
    checkpoint_s: float = 0.0
    min_nodes: int = 1


def best_interval_s(fleet: Fleet, checkpoint_s: float) -> float:
    """Training between two checkpoints that loses the least, where each restart needs one.

    Source: J. W. Young, "A first order approximation to the optimum checkpoint interval", 1974.
    """
    alone = fleet.failure.rate + fleet.crash.rate + fleet.drain.rate
    racks = fleet.rack.rate / fleet.rack_nodes if fleet.rack_nodes else 0.0
    # Without spares each node that comes back is a restart, too.
    returns = fleet.failure.rate + fleet.drain.rate + racks if not fleet.spares else 0.0
    rate = fleet.nodes * (alone + racks + returns)
    return math.sqrt(2 * checkpoint_s / rate) if rate else math.inf


def with_best_interval(way: Way, fleet: Fleet) -> Way:
    """The same with the interval between checkpoints that suits the fleet.

    Where nothing fails there are none; where they cost nothing, one a step.
    """
    every_s = max(best_interval_s(fleet, way.checkpoint_s), way.step_s)
    return replace(way, checkpoint_every_s=every_s)
