"""What snapshots cost a rank: steps with one each and steps without, alternately, in one process.

    turn        2 steps, a snapshot after each     2 steps without    2 without    2 with ...

The interval adapts until one snapshot costs less than its share of the steps in it. In turns that
long, with one snapshot each, the cost would be smaller than what the processor time of the same
steps varies by on a shared machine. So each step has a snapshot here, and the cost of one is
divided by the interval. A snapshot begins and ends with the step after its own, so nothing of it
leaks into the next turn. Processor time is of the whole process, threads too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch._C._distributed_c10d import HashStore

from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.training import made
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.rank.arrival.session import arrive, join
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import DataInfo
from bundlerun.workers.snapshot.pace import Pace, interval
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.snapshots import Snapshots, Source
from bundlerun.workers.step import StepWork
from bundlerun.workers.sync.schemes import ways_of

CLAIM = "a snapshot every few steps, as many as it chooses, costs a rank at most 1 %"
MOST_PERCENT = 1.0
NUM_ROUNDS = 60
_WARM_STEPS = 8
_TURN_STEPS = 2
_IMAGE_SIZE = 64
_BATCH_SIZES = {"resnet18": 64, "resnet50": 32}


@dataclass
class Turns:
    """Seconds per step of each turn: processor time, then wall time."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self, num_steps: int) -> Iterator[None]:
        """Times one turn of that many steps."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu_s.append((time.process_time() - cpu) / num_steps)
        self.wall_s.append((time.perf_counter() - wall) / num_steps)


class OneRank:
    """Steps of the real trainer in this process, with its snapshots.

    Args:
        model: a torchvision model.
    """

    def __init__(self, model: str) -> None:
        size = _BATCH_SIZES[model]
        config = TrainConfig(
            model=model, data="synthetic", batch_size=size, microbatch_size=size, shape=Shape((1,))
        )
        env = RankEnv.from_mapping({})
        arrival = arrive(config, env, HashStore())
        session = join(config, arrival, ways_of(config, arrival).members)
        self._trainer = made(config, session, DataInfo(num_train=1, num_val=0, num_outputs=10))
        self.room = SnapshotRoom.of(f"benchmark {os.getpid()}", "benchmark", "")
        self.pace = Pace()
        self._snapshots = Snapshots(
            session,
            self.room,
            source=Source(state=self._trainer.state),
            meters=Meters(),
            pace=self.pace,
        )
        # As in a run: the sync of a step waits for the snapshot of the one before (I8).
        self._trainer.sync.hold(self._snapshots)
        images = torch.randn(size, 3, _IMAGE_SIZE, _IMAGE_SIZE)
        self._batch = Batch((images,), torch.arange(size) % 10, 0)
        self._step = 0

    def step(self, *, keep: bool) -> None:
        """One step, perhaps while a snapshot of the one before is taken."""
        start = time.perf_counter()
        size = len(self._batch.target)
        if keep:
            at = self._step
            self._snapshots.save(Progress(step=at, epoch=0, step_in_epoch=at, samples_seen=at))
        work = StepWork(seed=0, step=self._step, first=0, sizes=[size], num_samples=size)
        self._trainer.step(work, iter([self._batch]), steps_per_epoch=1000)
        self._step += 1
        self.pace.stepped(time.perf_counter() - start)

    def close(self) -> None:
        """Ends the threads and removes the pieces."""
        self._snapshots.close()
        self._trainer.close()
        self.room.give_up()
        self.room.close()


def run(options: Options) -> None:
    """Measures both models."""
    torch.set_num_threads(1)
    rows, results, checks = [], [], []
    for model in _BATCH_SIZES:
        found = _measured(model, options.rounds_or(NUM_ROUNDS))
        results.append(found)
        cost = found["cpu_percent"]
        rows.append(
            (model, found["step_ms"], found["copy_ms"], found["one_percent"], found["every"], *cost)
        )
        checks.append(Check(f"{model}: percent of processor time, at most", cost[1], MOST_PERCENT))
    head = ("model", "step ms", "copy ms", "one, % of a step", "every", "cost %: low", "", "high")
    print_table(head, rows)
    options.record("snapshot", {"models": results}, checks)


def _measured(model: str, num_rounds: int) -> dict[str, Any]:
    rank = OneRank(model)
    try:
        for _ in range(_WARM_STEPS):
            rank.step(keep=True)
        # From the warm-up, in which each step had a snapshot.
        copy_s, step_s = rank.pace.measured()
        turns = {True: Turns(), False: Turns()}
        for number in range(2 * num_rounds):
            # with, without, without, with: a steady drift of the machine falls on both alike.
            keep = (number % 4) in (0, 3)
            with turns[keep].timed(_TURN_STEPS):
                for _ in range(_TURN_STEPS):
                    rank.step(keep=keep)
    finally:
        rank.close()
    every = interval(copy_s, step_s)
    one = more_percent(turns[True].cpu_s, turns[False].cpu_s)
    return {
        "model": model,
        "step_ms": 1000 * median(turns[False].wall_s),
        "copy_ms": 1000 * copy_s,
        "one_percent": one[1],
        "every": every,
        "cpu_percent": [percent / every for percent in one],
        "wall_percent": [
            percent / every for percent in more_percent(turns[True].wall_s, turns[False].wall_s)
        ],
        "seconds": {str(keep): [each.cpu_s, each.wall_s] for keep, each in turns.items()},
    }


def more_percent(with_them: Sequence[float], without: Sequence[float]) -> list[float]:
    """Percent more of neighbouring turns: the median, between the ends of its 95 % interval.

    The interval is that of the order statistics: the number of pairs on one side of the true
    median is distributed as the number of heads in as many tosses.
    """
    pairs = zip(with_them, without, strict=True)
    found = sorted(100 * (one / other - 1) for one, other in pairs)
    # 1.96 standard deviations of the number of heads, sqrt(n) / 2 each.
    reach = int(0.98 * len(found) ** 0.5)
    middle = len(found) // 2
    low, high = max(0, middle - reach), min(len(found) - 1, middle + reach)
    return [found[low], median(found), found[high]]
