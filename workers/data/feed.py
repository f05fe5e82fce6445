"""What this rank works on, step by step, and the batches for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.loaders import loaders_of
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.order import (
    Speeds,
    dealt_microbatches,
    num_steps,
    repeated_order,
    sample_order,
    share_out,
    step_microbatches,
)
from bundlerun.workers.data.readers import Source, is_stream
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.data.streams.digest import digest_of
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device import host_memory
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.recipe import DataInfo, DataSets, SampleSet, Stream
from bundlerun.workers.step import StepWork

_SOURCES = ("training", "validation")
"""Of the loader, in order."""
_VALIDATION = _SOURCES.index("validation")
_NUM_DIGESTED = 3
"""Samples of a stream."""
_FORWARDS_OF_A_STEP = 3
"""A step's forwards and backwards take about three times as long as its forwards alone."""


_Cut = tuple[int, Sequence[Sequence[int]]]
"""Number of a step in the run, and the samples of each of its micro-batches."""


class Feed:
    """Shares the micro-batches out to the bundles and reads those of this rank.

    Args:
        config: the run's configuration.
        session: this rank's place.
        info: sizes of the data.
        data: the samples, on stage 0; None elsewhere (I4).
        before: of the round before, in this process; its loader goes on in this one.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        info: DataInfo,
        data: DataSets | None,
        before: Feed | None = None,
    ) -> None:
        self._config = config
        self._bundle = session.place.bundle
        self._replica = session.place.replica
        self._width = session.topology.shape.widths[0]
        self._info = info
        self._plan = SharePlan(session.topology.num_bundles)
        self._requests = _Requests((), self._mine)
        self._begun: tuple[Iterator[StepWork], Iterator[Batch]] | None = None
        self._data = data
        if config.ra_reps > 1 and data is not None and is_stream(data.train):
            raise ConfigError(
                f"--ra-reps {config.ra_reps} takes each sample several times, and the training "
                "samples are a stream; leave it out"
            )
        self._cuts: tuple[int, int, Sequence[_Cut]] | None = None
        """An epoch, the first of its steps that are there, and their micro-batches."""
        self._digests: dict[str, str] | None = None
        self._loader: MicrobatchLoader | None = None
        if before is not None:
            self._cuts, self._digests = before._cuts, before._digests
            self._loader = before._handed_on()
        if self._loader is None and data is not None:
            self._loader = _loader(config, session, data)

    @property
    def num_train(self) -> int:
        """Training samples of an epoch."""
        return self._info.num_train

    @property
    def has_validation(self) -> bool:
        """Whether there is anything to validate on."""
        return self._info.num_val > 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps that use every training sample once."""
        return num_steps(self._info.num_train, self._config.batch_size)

    def samples_after(self, epoch: int, step_in_epoch: int) -> int:
        """Training samples used before a step, over all epochs."""
        in_epoch = min(step_in_epoch * self._config.batch_size, self._info.num_train)
        return epoch * self._info.num_train + in_epoch

    def check_resumable(self, progress: Progress, source: str = "checkpoint") -> None:
        """Raises ConfigError where `progress` counts in other steps than this run does.

        With another batch size, seed, or other data, some samples would be used twice and some
        never.

        Args:
            source: what it is from, in one word.
        """
        if progress.seed not in (None, self._config.seed):
            raise ConfigError(
                f"the {source} of step {progress.step} was taken with --seed {progress.seed}, this "
                f"run has --seed {self._config.seed}, which would use some samples twice; resume "
                f"with --seed {progress.seed}, or start again in another --run-dir"
            )
        # Both together tell a run that counts otherwise: batch size and data set enter into both.
        step = progress.epoch * self.steps_per_epoch + progress.step_in_epoch
        samples = self.samples_after(progress.epoch, progress.step_in_epoch)
        if (step, samples) != (progress.step, progress.samples_seen):
            raise ConfigError(
                f"the {source} of step {progress.step} was taken after {progress.samples_seen} "
                f"samples; with --batch-size {self._config.batch_size} and {self.num_train} "
                f"training samples it would be step {step} after {samples}; resume with the batch "
                "size and the data of before, or start again in another --run-dir"
            )

    def share_from(self, step: int, speeds: Speeds) -> None:
        """Shares out by these from a step of the run on; to be called alike on every rank.

        Samples of that step have not been asked for yet, on any rank (`asked_for`).
        """
        self._plan.change(step, speeds)

    def rest(self, step: int, num_bundles: int) -> None:
        """Has the first `num_bundles` do all of a step of the run; to be called alike on all ranks.

        Before any of its samples are asked for.
        """
        self._plan.rest(step, num_bundles)

    def counts(self) -> list[int]:
        """Micro-batches of each bundle in a whole step, by the newest shares."""
        return self._plan.counts(self._config.num_microbatches)

    def asked_for(self) -> int:
        """The last step that the loader may be asked for samples of before the next one ends.

        0 where this rank reads none.
        """
        if self._loader is None:
            return 0
        return self._requests.reach()

    def first_inputs(self) -> tuple[Any, ...] | None:
        """The inputs of the run's first micro-batch, before training; None on other ranks."""
        works, batches = self.epoch(0, 0)
        first = next(batches, None)
        if first is None:
            return None
        # Put back in front: the first epoch still trains on it, and nothing is read twice.
        self._begun = works, chain([first], batches)
        return first.inputs

    def epoch(self, epoch: int, first_step: int) -> tuple[Iterator[StepWork], Iterator[Batch]]:
        """The work of the steps left in an epoch, and this rank's batches for all of them."""
        begun, self._begun = self._begun, None
        if begun is not None and (epoch, first_step) == (0, 0):
            return begun
        # All steps at once, as the loader reads ahead over their borders.
        steps = self._steps(epoch, first_step)
        works = (self._work(step, microbatches) for step, microbatches in steps)
        if self._loader is None:
            return works, iter(())
        self._requests = _Requests(steps, self._mine)
        return works, self._loader.batches(self._requests, epoch=epoch)

    def _steps(self, epoch: int, first_step: int) -> Sequence[_Cut]:
        """The steps left in an epoch; of many samples it takes a while, so they are kept."""
        if self._cuts is not None and self._cuts[0] == epoch and self._cuts[1] <= first_step:
            return self._cuts[2][first_step - self._cuts[1] :]
        order, first = self._order(epoch), epoch * self.steps_per_epoch
        steps = [
            (first + step, self._cut(order, step))
            for step in range(first_step, self.steps_per_epoch)
        ]
        self._cuts = epoch, first_step, steps
        return steps

    def validation(self) -> tuple[list[StepWork], Iterator[Batch]]:
        """The work of one pass over the validation samples, in parts, and this rank's batches.

        A part takes about as long as a step of training: between two, a run may be stopped.
        """
        size = self._config.samples_per_microbatch
        part = size * num_steps(_FORWARDS_OF_A_STEP * self._config.batch_size, size)
        # Validation needs no shuffling: its sums do not depend on the order.
        order = range(self._info.num_val)
        parts = [
            step_microbatches(order, index, batch_size=part, microbatch_size=size)
            for index in range(num_steps(len(order), part))
        ]
        # Shares are of all validation samples, so that the parts' losses add up to the mean.
        works = [replace(self._work(0, each), num_samples=len(order)) for each in parts]
        if self._loader is None:
            return works, iter(())
        requests = _Requests([(0, each) for each in parts], self._mine)
        return works, self._loader.batches(requests, epoch=0, source=_VALIDATION)

    def example(self, num_samples: int) -> tuple[Any, ...]:
        """The inputs of a micro-batch of that many samples, the first of the data; on stage 0.

        Raises:
            BundleError: they cannot be read.
        """
        assert self._loader is not None, "only stage 0 reads"
        indices = range(min(num_samples, self._info.num_train))
        return next(self._loader.batches([indices], epoch=0)).inputs

    def digests(self) -> dict[str, str]:
        """What tells the samples of each part from others; on stage 0.

        As they say it themselves; of streams, what the first ones are.

        Raises:
            BundleError: a stream cannot be read.
        """
        if self._digests is not None:
            return self._digests
        found = self._digests = {}
        for part, source, count in self._parts():
            names = getattr(source.samples, "names_digest", None)
            if callable(names):
                found[part] = str(names())
            elif is_stream(source.samples):
                found[part] = self._first_digest(part, count)
        return found

    def _parts(self) -> list[tuple[str, Source, int]]:
        """Name, samples and their number."""
        data = self._data
        assert data is not None, "only stage 0 reads"
        val = Source.val(data)
        others = [] if val is None else [("validation", val, self._info.num_val)]
        return [("training", Source.train(data), self._info.num_train), *others]

    def _first_digest(self, part: str, count: int) -> str:
        # By the loader: what a stream opens at its first sample belongs to a loading process.
        assert self._loader is not None, "only stage 0 reads"
        source, first = _SOURCES.index(part), range(min(_NUM_DIGESTED, count))
        batch = next(self._loader.batches([first], epoch=0, source=source))
        return digest_of((batch.inputs, batch.target))

    def _handed_on(self) -> MicrobatchLoader | None:
        """The loader; None where there is none that another feed can go on with."""
        streams = self._data is not None and any(is_stream(s.samples) for _, s, _ in self._parts())
        if streams:
            self.close()  # it has read ahead, and goes only forward
        loader, self._loader = self._loader, None
        return None if streams else loader

    def close(self) -> None:
        """Ends the loading processes."""
        if self._loader is not None:
            self._loader.close()

    def _order(self, epoch: int) -> Sequence[int]:
        """The samples of an epoch in order; where nobody reads, only their number counts."""
        count = self._info.num_train
        if self._data is None or is_stream(self._data.train):
            return range(count)  # a stream is shuffled by who has made it
        order = self._single_order(epoch, self._data.train)
        repeats = self._config.ra_reps
        return order if repeats == 1 else repeated_order(order, repeats)

    def _single_order(self, epoch: int, samples: SampleSet | Stream) -> Sequence[int]:
        """Each sample once."""
        count = self._info.num_train
        own = getattr(samples, "epoch_order", None)
        if own is None:
            return sample_order(self._config.seed, epoch, count)
        order: Sequence[int] = own(self._config.seed, epoch)
        if not np.array_equal(np.sort(np.asarray(order)), np.arange(count)):
            raise ConfigError(
                f"epoch_order({self._config.seed}, {epoch}) of {type(samples).__name__} does "
                f"not have each of the numbers 0 to {count - 1} once"
            )
        return order

    def _cut(self, order: Sequence[int], step: int) -> list[list[int]]:
        cut = step_microbatches if self._config.ra_reps == 1 else dealt_microbatches
        return cut(
            order,
            step,
            batch_size=self._config.batch_size,
            microbatch_size=self._config.samples_per_microbatch,
        )

    def _bundles(self, step: int, num_microbatches: int) -> range:
        """The micro-batches of a step that this bundle does."""
        # The same on every rank, as the speeds are: nobody has to ask who does what (I1).
        counts = self._plan.counts(num_microbatches, step)
        first = sum(counts[: self._bundle])
        return range(first, first + counts[self._bundle])

    def _mine(self, step: int, num_microbatches: int) -> range:
        """Those of them that this rank reads: replicas of a stage take turns (I3)."""
        return self._bundles(step, num_microbatches)[self._replica :: self._width]

    def _work(self, step: int, microbatches: Sequence[Sequence[int]]) -> StepWork:
        mine = self._bundles(step, len(microbatches))
        return StepWork(
            seed=self._config.seed,
            step=step,
            first=mine.start,
            sizes=[len(microbatches[j]) for j in mine],
            num_samples=sum(map(len, microbatches)),
        )


class SharePlan:
    """How many micro-batches each bundle does in which step.

    Args:
        num_bundles: of the round.
    """

    def __init__(self, num_bundles: int) -> None:
        self._changes = [(0, Speeds.equal(num_bundles))]
        self._known: dict[tuple[int, int], list[int]] = {}
        self._num_bundles = num_bundles
        self._rest: tuple[int, int] | None = None

    def rest(self, step: int, num_bundles: int) -> None:
        """In a step of the run only the first bundles have anything to do."""
        self._rest = step, num_bundles

    def change(self, step: int, speeds: Speeds) -> None:
        """Other speeds from a step of the run on, which is not before that of the last change."""
        self._changes.append((step, speeds))

    def counts(self, num_microbatches: int, step: int | None = None) -> list[int]:
        """Of each bundle, in a step of so many.

        Args:
            step: of the run; None: by the newest shares.
        """
        if self._rest is not None and step == self._rest[0]:
            working = self._rest[1]
            resting = self._num_bundles - working
            return share_out(num_microbatches, Speeds.equal(working)) + [0] * resting
        last = len(self._changes) - 1
        while step is not None and self._changes[last][0] > step:
            last -= 1
        key = last, num_microbatches
        if key not in self._known:
            self._known[key] = share_out(num_microbatches, self._changes[last][1])
        return self._known[key]


class _Requests:
    """What one rank asks its loader for, each micro-batch by the shares at the time it is asked.

    Args:
        steps: their number in the run, and the samples of their micro-batches.
        mine: which micro-batches of a step this rank reads, of how many.
    """

    def __init__(
        self,
        steps: Sequence[_Cut],
        mine: Callable[[int, int], range],
    ) -> None:
        self._steps = steps
        self._mine = mine
        self._at = 0, 0
        """The step whose micro-batches are asked for, and how many of them have been."""

    def __iter__(self) -> Iterator[Sequence[int]]:
        for index, (step, microbatches) in enumerate(self._steps):
            self._at = index, 0
            for count, j in enumerate(self._mine(step, len(microbatches)), 1):
                self._at = index, count
                yield microbatches[j]

    def reach(self) -> int:
        """The last step of which anything may be asked for until a step from now is over.

        For each micro-batch that a rank takes, its loader asks for another one.
        """
        if not self._steps:
            return 0
        index, count = self._at
        # All of the step that begins, which may be larger than the last of an epoch; one of the
        # next step, which may be begun ahead, and one that is on its way to a GPU.
        left = count + max(self._num_mine(index), self._num_mine(max(0, index - 1))) + 2
        while index < len(self._steps) - 1:
            left -= self._num_mine(index)
            if left <= 0:
                break
            index += 1
        return self._steps[index][0]

    def _num_mine(self, index: int) -> int:
        step, microbatches = self._steps[index]
        return len(self._mine(step, len(microbatches)))


def _loader(config: TrainConfig, session: Session, data: DataSets) -> MicrobatchLoader:
    """One for training and validation: they take turns, so that each has all the processes."""
    place, has_gpu = session.place, door.is_gpu(session.device)
    here = [each for each in session.topology.places if each.node == place.node]
    loaders = loaders_of(
        config.loader_workers, here, place.local_rank, session.arrival.cores, has_gpu=has_gpu
    )
    train, val = Source.train(data), Source.val(data)
    return MicrobatchLoader(
        train.samples,
        config=config,
        collate=train.collate,
        num_samples=train.num_samples,
        others=() if val is None else (val,),
        num_workers=loaders.count,
        cpus=loaders.cpus,
        pin_memory=has_gpu and host_memory.can_pin(),
    )
