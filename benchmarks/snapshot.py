"""What snapshots cost a rank: steps with them and without, in turns, in one process.

    turn        k steps, one snapshot behind the first    k steps without    k steps, one    ...

k is what the interval adapts to by itself. Processor time is of the whole process, threads too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch._C._distributed_c10d import HashStore

from benchmarks.record import Check, Options, print_table
from benchmarks.training import made
from launcher.checkpoints import Progress
from launcher.config import TrainConfig
from workers.bundle import StepWork
from workers.env import RankEnv
from workers.meters import Meters
from workers.recipe import DataInfo
from workers.samples import Batch
from workers.session import arrive, join
from workers.snapshot import Snapshots
from workers.snapshot_folder import SnapshotRoom
from workers.snapshot_pace import Pace, interval

CLAIM = "a snapshot every few steps, as many as it chooses, costs a rank at most 1 %"
MOST_PERCENT = 1.0
NUM_ROUNDS = 15
_WARM_STEPS = 6
_IMAGE_SIZE = 64
_BATCH_SIZES = {"resnet18": 64, "resnet50": 32}


@dataclass
class Turns:
    """Seconds per step of each turn: processor time, then wall time."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self, num_steps: int) -> Iterator[None]:
        """Times one turn of so many steps."""
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
            model=model, data="synthetic", batch_size=size, microbatch_size=size, shape=(1,)
        )
        env = RankEnv.from_mapping({})
        session = join(config, arrive(config, env, HashStore()))
        self._trainer = made(config, session, DataInfo(num_train=1, num_val=0, num_outputs=10))
        self.room = SnapshotRoom.of(f"benchmark {os.getpid()}", "benchmark", "")
        self.pace = Pace()
        self._snapshots = Snapshots(
            session,
            self.room,
            state=self._trainer.state,
            feedback=dict,
            situation="",
            meters=Meters(),
            pace=self.pace,
        )
        self._trainer.sync.hold(self._snapshots)
        images = torch.randn(size, 3, _IMAGE_SIZE, _IMAGE_SIZE)
        self._batch = Batch((images,), torch.arange(size) % 10, 0)
        self._step = 0

    def step(self, *, keep: bool) -> None:
        """One step, and the start of a snapshot behind the next."""
        start = time.perf_counter()
        size = len(self._batch.target)
        work = StepWork(seed=0, step=self._step, first=0, sizes=[size], num_samples=size)
        self._trainer.step(work, iter([self._batch]), steps_per_epoch=1000)
        self._step += 1
        if keep:
            # One that is due, whatever the interval: the turns count the steps.
            at = self._step * self.pace.every
            self._snapshots.save(Progress(step=at, epoch=0, step_in_epoch=at, samples_seen=at))
        self.pace.stepped(time.perf_counter() - start)

    def turn(self, num_steps: int, *, keep: bool) -> None:
        """Steps, the first with a snapshot behind the next; the last waits for nothing."""
        for number in range(num_steps):
            self.step(keep=keep and number == 0)

    def close(self) -> None:
        """Ends the threads and removes the pieces."""
        self._snapshots.close()
        self._trainer.close()
        self.room.is_done = True
        self.room.close()


def run(options: Options) -> None:
    """Measures both models."""
    torch.set_num_threads(1)
    rows, results, checks = [], [], []
    for model in _BATCH_SIZES:
        found = _measured(model, options.rounds_or(NUM_ROUNDS))
        results.append(found)
        cost = found["cpu_percent"]
        rows.append((model, found["step_ms"], found["copy_ms"], found["every"], *cost))
        checks.append(Check(f"{model}: percent of processor time, at most", cost[1], MOST_PERCENT))
    head = ("model", "step ms", "copy ms", "every", "cost %: quarter", "median", "3 quarters")
    print_table(head, rows)
    options.record("snapshot", {"models": results}, checks)


def _measured(model: str, num_rounds: int) -> dict[str, Any]:
    rank = OneRank(model)
    try:
        for _ in range(_WARM_STEPS):
            rank.step(keep=True)
        copy_s, step_s = rank.pace.measured()
        # Two steps at least: the copy is done behind the one after its own.
        rank.pace.every = every = interval(copy_s, step_s)
        num_steps = max(2, every)
        turns = {True: Turns(), False: Turns()}
        for number in range(2 * num_rounds):
            keep = (number % 4) in (0, 3)
            with turns[keep].timed(num_steps):
                rank.turn(num_steps, keep=keep)
    finally:
        rank.close()
    return {
        "model": model,
        "step_ms": 1000 * median(turns[False].wall_s),
        "copy_ms": 1000 * copy_s,
        "every": every,
        "cpu_percent": _more(turns[True].cpu_s, turns[False].cpu_s),
        "wall_percent": _more(turns[True].wall_s, turns[False].wall_s),
        "seconds": {str(keep): [one.cpu_s, one.wall_s] for keep, one in turns.items()},
    }


def _more(with_them: list[float], without: list[float]) -> list[float]:
    """Percent more of neighbouring turns, quartiles."""
    pairs = zip(with_them, without, strict=True)
    return quantiles([100 * (one / other - 1) for one, other in pairs], n=4)
