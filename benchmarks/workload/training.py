"""The real trainer on forked ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch._C._distributed_c10d import PrefixStore

from benchmarks.cluster.forked import Seat
from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.model.stage import make_stage, open_data
from bundlerun.workers.rank.arrival.session import Session, arrive, join
from bundlerun.workers.rank.meters import Meters, Phase
from bundlerun.workers.recipe import DataInfo, load_recipe
from bundlerun.workers.step import StepWork
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.trainer import Trainer


def joined(seat: Seat, config: TrainConfig, name: str) -> Session:
    """The session of one run; collective, a name per run."""
    arrival = arrive(config, seat.env, PrefixStore(f"training/{name}", seat.store))
    return join(config, arrival, ways_of(config, arrival).members)


def made(
    config: TrainConfig, session: Session, info: DataInfo, meters: Meters | None = None
) -> Trainer:
    """The trainer of one rank; collective."""
    recipe = load_recipe(config)
    stage = make_stage(config, recipe, info, session.place.stage)
    trainer = Trainer(config, session, stage, recipe, meters or Meters())
    trainer.copy_from_first()
    return trainer


class FixedSteps:
    """Steps of the trainer over the same few samples, which are in memory.

    Args:
        seat: this rank; collective.
        config: the run's.
        name: of the run, new for these ranks.
        samples: all micro-batches of a step.
    """

    def __init__(
        self, seat: Seat, config: TrainConfig, name: str, samples: Sequence[Batch]
    ) -> None:
        self._session = joined(seat, config, name)
        info = DataInfo(num_train=1, num_val=0, num_outputs=config.num_classes)
        self._meters = Meters()
        self._trainer = made(config, self._session, info, self._meters)
        self._config = config
        self._samples = samples
        self._step = 0

    @property
    def trained_bytes(self) -> int:
        """Of this rank's parameters."""
        return sum(p.nbytes for p in self._trainer.stage.parameters() if p.requires_grad)

    @property
    def trainer(self) -> Trainer:
        """Of this rank."""
        return self._trainer

    def seconds(self, phase: Phase) -> float:
        """In one phase of all steps so far."""
        return self._meters.seconds()[phase]

    def step(self) -> None:
        """One step, optimizer included."""
        place, topology = self._session.place, self._session.topology
        # Equal parts for the bundles, one after the other.
        each = len(self._samples) // topology.num_bundles
        first = place.bundle * each
        mine = range(first, first + each)
        work = StepWork(
            seed=self._config.seed,
            step=self._step,
            first=first,
            sizes=[len(self._samples[j].target) for j in mine],
            num_samples=sum(len(batch.target) for batch in self._samples),
        )
        # Within a bundle, the replicas of the first stage take micro-batches alternately.
        batches = [self._samples[j] for j in mine[place.replica :: topology.shape.widths[0]]]
        self._step += 1  # also where the step fails
        following = work if self._config.overlap_forward else None
        self._trainer.step(work, iter(batches), steps_per_epoch=1000, following=following)

    def settle(self) -> None:
        """Waits for what the last step has left behind, with --overlap-forward."""
        self._trainer.settle()


def losses_by_epoch(seat: Seat, config: TrainConfig, name: str) -> list[float]:
    """Trains from the data set; mean loss of each epoch, NaN on other stages than the last.

    Collective: every rank.
    """
    session = joined(seat, config, name)
    info, data = open_data(load_recipe(config), session)
    feed = Feed(config, session, info, data)
    trainer = made(config, session, info)
    try:
        return [_epoch_loss(trainer, feed, epoch) for epoch in range(config.epochs)]
    finally:
        trainer.close()
        feed.close()


def _epoch_loss(trainer: Trainer, feed: Feed, epoch: int) -> float:
    works, batches = feed.epoch(epoch, 0)
    losses = list(_losses(trainer, works, batches, feed.steps_per_epoch))
    return sum(losses) / len(losses)


def _losses(
    trainer: Trainer, works: Iterator[StepWork], batches: Iterator[Batch], steps_per_epoch: int
) -> Iterator[float]:
    for work in works:
        sums = trainer.step(work, batches, steps_per_epoch).sums
        yield math.nan if sums is None else sums.loss
