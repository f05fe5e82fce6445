"""One rank's state and what a step does to it: bundle, sync, batch norm, clip, optimizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.shared import kept_elsewhere, model_parameters
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.model import replica_check
from bundlerun.workers.model.compiled import begin_replays
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.forwards import forwards_of
from bundlerun.workers.model.memory_format import arrange
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.model.replica_check import CopyChecks, ReplicaCheck
from bundlerun.workers.optim.loss_scale import LossScale
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.optim.update import StepLoss, Update
from bundlerun.workers.optimizer import check_optimizer
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.pipeline.loss import LossCheck
from bundlerun.workers.pipeline.wires import Wires
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.rank.session import Session
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.report.declared import Declared
from bundlerun.workers.report.metric_sums import MetricSums
from bundlerun.workers.state.named import load_state_tensors, state_tensors
from bundlerun.workers.state.tensor_file import check_dtypes
from bundlerun.workers.step import StepResult, StepShare, StepSums, StepWork
from bundlerun.workers.sync.calibrate import write_choice
from bundlerun.workers.sync.rank_sync import RankSync
from bundlerun.workers.values.module_tensors import moved

log = logging.getLogger(__name__)

_STOP = 1
"""Where ranks that are told to stop are counted: after the loss."""
_WEIGHT = _STOP + 1
"""Where the weights of losses are, and behind it how many ranks have said one."""
_FOUND = _WEIGHT + 2
"""Where tensors are counted that a forward was seen to write."""
_CHECK = _FOUND + 1
"""Where the numbers that compare the replicas begin."""
_METRICS = _CHECK + replica_check.NUM_SUMS
"""Where the metrics begin that the recipe has declared."""
_TIGHT, _LOOSE = 1e-3, 2e-2
"""How far a loss may be from the mean of its samples' losses, relatively, by rounding."""


def _never() -> bool:
    return False


class Trainer:
    """Trains one stage replica; every rank of the job has one.

    Args:
        config: the run's configuration.
        session: this rank's place and groups.
        stage: this rank's part of the model, freshly made, in CPU memory.
        recipe: gives loss, metrics and optimizer.
        meters: gets the time of each phase.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        stage: nn.Module,
        recipe: Recipe,
        meters: Meters,
    ) -> None:
        self._config = config
        self._recipe = recipe
        self._session = session
        self._meters = meters
        # Before the optimizer sees the parameters, and in CPU memory, where the stage was made.
        if config.precision == "float64":
            stage = stage.double()
        self.stage = moved(stage, session.device)
        self._memory_format = arrange(
            self.stage, config.memory_format, has_gpus=session.arrival.has_gpus
        )
        self.stage.train()  # a model's own may say which parameters are trained: see them so
        # After `.to`: an optimizer keeps the tensors that it is given.
        self.optimizer = recipe.optimizer(model_parameters(self.stage))
        check_optimizer(self.optimizer, self.stage)
        self.groups = ParamGroups(self.optimizer, speaks=session.is_writer)
        self.loss_scale = LossScale.of(config)
        self._update = Update(
            config, session, self.stage, self.optimizer, self.groups, self.loss_scale
        )
        self._is_last = session.is_last_stage
        self._declared = Declared.of(recipe)
        self._metrics = self._metric_sums()
        # What no checkpoint can hold is said before the first step, not when the first one is due.
        self._check_kept()
        self._has_stepped = False
        self.sync = self._make_sync()
        # Loss, metrics, counts and batch norm statistics travel at the end of a bucket: a step has
        # no collective but its buckets.
        num_sums = _METRICS + self._metrics.num_slots
        self._sums, statistics = self.sync.extra.tensor_split([num_sums])
        self._statistics = StatisticsPool(self.stage, statistics)
        # Next to each other: read together.
        self._told = self.sync.extra[: num_sums + len(self._statistics.counts)]
        place, topology = session.place, session.topology
        num_replicas = len(topology.stage_ranks(place.stage))
        self._replicas = ReplicaCheck(
            self.stage, f"the replicas of stage {place.stage}", num_replicas
        )
        self._copies = CopyChecks(self.sync.shared)
        self._kept_elsewhere = kept_elsewhere(self.stage, place.stage)
        self._forward_state = ForwardState(
            self.stage, config.chunks, self.sync.all_sum, speaks=session.is_writer
        )
        self.bundle = self._make_bundle()

    def _make_bundle(self) -> Bundle:
        config, session, stage = self._config, self._session, self._session.place.stage
        pipeline = Pipeline.of(session.topology, config.schedule)
        count = math.ceil(config.num_microbatches / session.topology.num_bundles)  # or about that
        is_recomputed = config.recomputes(stage, max_in_flight(pipeline.order(stage, 0, count)))
        around = self._statistics, self._forward_state, session.device
        forwards = forwards_of(self.stage, config, *around, recomputes=is_recomputed)
        links, device = session.groups.links, session.device
        return Bundle(
            wires=Wires(session.topology, session.place, links, pipeline, device),
            pipeline=pipeline,
            stage=self.stage,
            forwards=forwards,
            recipe=self._recipe,
            arithmetic=Arithmetic(device, config.precision, self._memory_format, self.loss_scale),
            meters=self._meters,
        )

    def _metric_sums(self) -> MetricSums:
        """Those of a pass; other stages than the last have no metrics to sum."""
        return MetricSums(self._declared.names if self._is_last else ())

    def _make_sync(self) -> RankSync:
        place = self._session.place
        sync = RankSync.of(
            self._config,
            self._session,
            self.stage,
            num_extra=_METRICS + self._metrics.num_slots + StatisticsPool.size(self.stage),
            num_shared_extra=replica_check.NUM_SUMS,
            meters=self._meters,
        )
        if sync.choice is not None and self._session.is_writer:
            log.info("stage %d: sync %s", place.stage, sync.choice)
            write_choice(RunPaths(Path(self._config.run_dir)).sync_choice(place.stage), sync.choice)
        return sync

    def step(
        self,
        work: StepWork,
        batches: Iterator[Batch],
        steps_per_epoch: int,
        wants_stop: Callable[[], bool] = _never,
    ) -> StepResult:
        """Does one optimizer step.

        Collective: every active rank.

        Args:
            work: this bundle's part of it.
            batches: the batches of this rank's micro-batches in order; read on stage 0 only.
            steps_per_epoch: for the learning rate.
            wants_stop: whether a rank of this bundle has heard that the run is to stop; asked
                once, after the forwards.

        Raises:
            ConfigError: a loss is no loss, or no checkpoint could hold what the optimizer keeps.
            DivergedError: the loss is no finite number, and --on-nan says to end.
        """
        # [1] Nothing of the step before may be left in what rides along with the gradients.
        self.sync.start_step()
        begin_replays(self._config)
        self._replicas.write(self._sums[_CHECK:_METRICS], work.step)
        self._copies.write(work.step)
        self._forward_state.begin_step()
        # [2] Forwards and backwards; buckets leave during the last backward.
        share = _share_in(self._sums, self._metrics)
        self.bundle.train(
            work,
            batches,
            share,
            before_last_backward=self.sync.arm,
            on_forwards_done=partial(self._forwards_done, share, wants_stop),
        )
        # [3] All sums are there. From here on every replica decides by the same numbers.
        self.sync.finish()
        reading = self.sync.start_read(self._told, self._update.norms())
        # Behind the numbers, so that a GPU has something to do while this thread wakes up.
        if self.sync.is_all_used and not self._forward_state.writes_parameters:
            with self._meters.phase("optimizer"), torch.no_grad():
                self._update.go_ahead(work.step, steps_per_epoch)
        told, norms, *copies = reading()
        sums, counts = told[: len(self._sums)], told[len(self._sums) :]
        num_stops, _, _, num_found, *check = sums[_STOP:_METRICS]
        # First of all: replicas that differ must not reach a snapshot.
        self._replicas.check(check, work.step)
        self._copies.check(copies, work.step)
        self._forward_state.settle(
            num_found, is_first=self._does_first(work), has_stepped=self._update.is_ahead
        )
        loss_scale, _ = self.loss_scale.kept
        has_changed = self._apply(work, _loss_of(sums), norms, counts, steps_per_epoch)
        self._check_changed(work.step)
        read = self._read_sums(sums, share, work, self._metrics)
        return StepResult(
            sums=read if self._is_last else None,
            num_unreadable=share.num_unreadable,
            has_changed=has_changed,
            heard_stop=num_stops > 0,
            loss_scale=loss_scale,
        )

    def _check_changed(self, step: int) -> None:
        """Looks at the state that the step has left."""
        # Most optimizers make their state in their first step only.
        if not self._has_stepped:
            self._has_stepped = True
            self._check_kept()
        if self._config.verify_replicas:
            self._replicas.verify(step, self.sync.all_sum, self._session.device)
            self._copies.verify(step, self._session.device)

    def _apply(
        self,
        work: StepWork,
        loss: StepLoss,
        norms: Sequence[float],
        counts: Sequence[float],
        steps_per_epoch: int,
    ) -> bool:
        """Changes parameters and statistics by what the sync has summed; whether it did."""
        scale = self.loss_scale.value
        with self._meters.phase("optimizer"), torch.no_grad():
            has_changed = self._update.apply(
                loss,
                norms,
                num_samples=work.num_samples,
                step=work.step,
                steps_per_epoch=steps_per_epoch,
            )
            if has_changed:
                self._statistics.apply(counts)
            # What rounding kept back was of these gradients, at this scale.
            if self.loss_scale.value != scale or self._update.is_weighted or not has_changed:
                self.sync.drop_feedback()
        return has_changed

    def _forwards_done(self, share: StepShare, wants_stop: Callable[[], bool]) -> None:
        """The small sums of the step are complete."""
        self._complete(self._sums, share, self._metrics)
        # Asked as late as possible: what is said here is heard by all ranks after this very step.
        if wants_stop():
            self._sums[_STOP] = 1.0

    def evaluate(
        self, works: Sequence[StepWork], batches: Iterator[Batch], *, is_told: Callable[[], bool]
    ) -> StepSums | None:
        """Mean loss and metrics over the validation samples; right on the last stage only.

        Collective: every active rank.

        Args:
            works: the pass in parts.
            is_told: whether this rank has heard that the run is to stop; asked before each part.

        Returns:
            None where a rank has, on all ranks.
        """
        self._forward_state.begin_step()
        metrics = self._metric_sums()
        num_sums = _METRICS + metrics.num_slots
        sums = torch.zeros(num_sums, dtype=torch.float64, device=self._session.device)
        share = _share_in(sums, metrics)
        for work in works:
            # One answer for all ranks: a rank that stopped alone would leave the others in a sum.
            if any(self.total([float(is_told())])):
                self._forward_state.undo()  # it is done again, from the same state
                return None
            begin_replays(self._config)
            self.bundle.evaluate(work, batches, share)
        self._complete(sums, share, metrics)
        found = self.sync.all_sum(sums).tolist()
        self._forward_state.settle(found[_FOUND], is_first=self._does_first(works[0]))
        read = self._read_sums(found, share, works[0], metrics)
        if not self._is_last:
            return read
        return replace(read, score=self._declared.best.score(read.loss, read.metrics))

    def _does_first(self, work: StepWork) -> bool:
        """Whether this rank does micro-batch 0 of the step, of all replicas of its stage."""
        return bool(work.sizes) and work.first == 0 and self._session.place.replica == 0

    def _complete(self, sums: Tensor, share: StepShare, metrics: MetricSums) -> None:
        """Puts in what else this rank has to say of the step, once its forwards are done."""
        num_found = self._forward_state.count_found()
        if num_found:  # else zero, as the step begins with
            sums[_FOUND] = float(num_found)
        metrics.check(share)
        if share.weight is not None:
            sums[_WEIGHT] = share.weight
            sums[_WEIGHT + 1] = 1.0

    def _read_sums(
        self, sums: Sequence[float], share: StepShare, work: StepWork, metrics: MetricSums
    ) -> StepSums:
        """What the sums over all bundles say; `share` is this rank's part of `work`."""
        slots, is_first = sums[_METRICS:], self._does_first(work)
        totals = metrics.totals(slots, share, is_first=is_first, all_sum=self.sync.all_sum)
        loss = _loss_of(sums).mean(work.num_samples)
        means = {name: total / max(1, work.num_samples) for name, total in totals.items()}
        told = self._declared.told(loss, means) if self._is_last else means
        return StepSums(loss=loss, metrics=told)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums numbers over all active ranks of the job.

        Collective: every active rank, outside a step.
        """
        # Over the replicas of a stage, then over the stages of a bundle: no group has all ranks.
        own = torch.tensor(values, dtype=torch.float64, device=self._session.device)
        of_stage = self.sync.all_sum(own).tolist()
        per_position = self._session.gather_bundle(of_stage)
        positions = self._session.topology.positions
        # A stage of several replicas has its sum several times in a bundle; it counts once.
        firsts = [v for v, (_, replica) in zip(per_position, positions, strict=True) if not replica]
        return [math.fsum(column) for column in zip(*firsts, strict=True)]

    def copy_from_first(self) -> None:
        """Starts every replica of a stage from the first one's parameters and buffers."""
        self.sync.copy_from_first([t.detach() for t in self.stage.state_dict().values()])

    def check_loss(self) -> None:
        """Has the losses of the first micro-batches looked at; by one rank of the last stage."""
        tolerance = _LOOSE if self._config.precision in ("bfloat16", "float16") else _TIGHT
        self.bundle.watch_losses(LossCheck(self._recipe, self._session.device, tolerance))

    def state(self) -> dict[str, Tensor]:
        """The state that the stage owns, by name; not copied, but for what a forward writes."""
        tensors = state_tensors(
            self.stage, self.optimizer, self.groups, without=self._kept_elsewhere
        )
        return self._forward_state.apart(tensors)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave, for the names of this stage.

        Raises:
            CheckpointError: it is of another model.
        """
        load_state_tensors(self.stage, self.optimizer, tensors, self.groups)

    def check_finite(self) -> None:
        """Raises CheckpointError where a parameter is not; --on-nan ignore lets it be."""
        trained = [p.detach() for p in self.stage.parameters() if p.requires_grad and p.numel()]
        if self._config.on_nan != "ignore" and not all(bool(p.isfinite().all()) for p in trained):
            raise CheckpointError("a parameter is no finite number; --on-nan ignore saves it so")

    def _check_kept(self) -> None:
        """Raises ConfigError for what no checkpoint could hold; not only when the first is due."""
        try:
            check_dtypes(state_tensors(self.stage, self.optimizer, self.groups))
        except CheckpointError as exc:
            raise ConfigError(f"this run could not be saved: {exc}") from exc

    def close(self) -> None:
        """Ends the threads."""
        self.sync.close()


def _share_in(sums: Tensor, metrics: MetricSums) -> StepShare:
    """A share whose loss and metrics are added up among the small sums of a step, all zeros."""
    return StepShare(loss_slot=sums[0], metric_slots=metrics.slots(sums[_METRICS:]))


def _loss_of(sums: Sequence[float]) -> StepLoss:
    return StepLoss(sums[0], sums[_WEIGHT], sums[_WEIGHT + 1])
