"""Which forward and backward of which micro-batch a rank does, in which order.

1F1B, shape 1,1, four micro-batches            shape 2,1: the front's replicas take turns (I3)

front  F0 F1 B0 F2 B1 F3 B2 B3                 front 0  F0 F2 B0 B2
rear   F0 B0 F1 B1 F2 B2 F3 B3                 front 1  F1 F3 B1 B3
                                               rear     F0 B0 F1 B1 F2 B2 F3 B3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Pass(Enum):
    """The direction of an action."""

    FORWARD = "F"
    BACKWARD = "B"


class Action(NamedTuple):
    """One pass of one micro-batch; `microbatch` counts inside the bundle."""

    kind: Pass
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind.value}{self.microbatch}"


def replica_microbatches(width: int, replica: int, num_microbatches: int) -> range:
    """The micro-batches of a bundle that one replica of a stage does (I3)."""
    return range(replica, num_microbatches, width)


def num_warmup(shape: Sequence[int], stage: int) -> int:
    """Forwards a replica does before its first backward, so that all stages behind it are busy."""
    behind = sum(shape[stage + 1 :])
    return -(-behind // shape[stage])


def one_forward_one_backward(
    shape: Sequence[int], stage: int, replica: int, num_microbatches: int
) -> list[Action]:
    """The 1F1B order of one replica of one stage.

    Source: Narayanan et al., PipeDream-Flush (Memory-Efficient Pipeline-Parallel DNN Training).
    """
    mine = list(replica_microbatches(shape[stage], replica, num_microbatches))
    warmup = min(num_warmup(shape, stage), len(mine))
    actions = [Action(Pass.FORWARD, j) for j in mine[:warmup]]
    for ahead, j in zip(mine[warmup:], mine, strict=False):
        actions += [Action(Pass.FORWARD, ahead), Action(Pass.BACKWARD, j)]
    actions += [Action(Pass.BACKWARD, j) for j in mine[len(mine) - warmup :]]
    return actions


def forward_only(
    shape: Sequence[int], stage: int, replica: int, num_microbatches: int
) -> list[Action]:
    """The order of an evaluation."""
    mine = replica_microbatches(shape[stage], replica, num_microbatches)
    return [Action(Pass.FORWARD, j) for j in mine]


Schedule = dict[tuple[int, int], list[Action]]


def bundle_schedule(shape: Sequence[int], num_microbatches: int) -> Schedule:
    """The 1F1B orders of all ranks of a bundle, by (stage, replica)."""
    return {
        (stage, replica): one_forward_one_backward(shape, stage, replica, num_microbatches)
        for stage, width in enumerate(shape)
        for replica in range(width)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a simulated step takes."""

    duration: float
    bubble: float
    """Idle share of the busiest stage's ranks: 0 is a full pipeline."""


def simulate(
    schedule: Schedule, forward: Sequence[float], backward: Sequence[float]
) -> Timeline | None:
    """Runs `schedule` with instant links; None where it would wait forever.

    Args:
        schedule: order per (stage, replica).
        forward: time of one forward, per stage, any unit.
        backward: time of one backward, per stage, same unit.
    """
    last = max(stage for stage, _ in schedule)
    done: dict[tuple[int, Action], float] = {}
    clock = dict.fromkeys(schedule, 0.0)
    position = dict.fromkeys(schedule, 0)
    moved = True
    while moved:
        moved = False
        for place, actions in schedule.items():
            stage = place[0]
            while position[place] < len(actions):
                action = actions[position[place]]
                ready = _ready_at(stage, action, last, done)
                if ready is None:
                    break
                cost = forward[stage] if action.kind is Pass.FORWARD else backward[stage]
                clock[place] = max(clock[place], ready) + cost
                done[stage, action] = clock[place]
                position[place] += 1
                moved = True
    if any(position[place] < len(actions) for place, actions in schedule.items()):
        return None
    duration = max(clock.values(), default=0.0)
    busiest = max(
        sum(forward[s] if a.kind is Pass.FORWARD else backward[s] for a in actions)
        for (s, _), actions in schedule.items()
    )
    return Timeline(duration=duration, bubble=1 - busiest / duration if duration else 0.0)


def _ready_at(
    stage: int, action: Action, last: int, done: dict[tuple[int, Action], float]
) -> float | None:
    """When the inputs of an action are there; None while they are not."""
    needs: list[tuple[int, Action]] = []
    if action.kind is Pass.FORWARD and stage > 0:
        needs.append((stage - 1, action))
    if action.kind is Pass.BACKWARD:
        needs.append((stage, Action(Pass.FORWARD, action.microbatch)))
        if stage < last:
            needs.append((stage + 1, action))
    if any(need not in done for need in needs):
        return None
    return max((done[need] for need in needs), default=0.0)


def draw(schedule: Schedule) -> Iterator[str]:
    """Yields one line per rank of a bundle, such as `0.0  F0 F1 B0 B1`."""
    for (stage, replica), actions in schedule.items():
        yield f"{stage}.{replica}  " + " ".join(map(str, actions))
