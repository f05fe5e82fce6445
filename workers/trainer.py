"""One rank's state and what a step does to it: bundle, sync, batch norm, clip, optimizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError, ConfigError, DivergedError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.shared import kept_elsewhere, model_parameters
from bundlerun.workers.bundle_made import make_bundle
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event
from bundlerun.workers.model.compiled import begin_replays
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.memory_format import arrange
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.optim.average import Average
from bundlerun.workers.optim.loss_scale import LossScale
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.optim.update import Update
from bundlerun.workers.optimizer import check_optimizer
from bundlerun.workers.overlap.steps import StepsBehind
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.loss import LossCheck
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.report.declared import Declared
from bundlerun.workers.report.evidence import judged
from bundlerun.workers.report.metric_sums import MetricSums
from bundlerun.workers.shares.tally import Tally
from bundlerun.workers.small_sums import SmallSums, Told
from bundlerun.workers.state.named import load_state_tensors, state_tensors
from bundlerun.workers.state.tensor_file import check_dtypes
from bundlerun.workers.step import StepResult, StepShare, StepSums, StepWork
from bundlerun.workers.sync.calibrate import write_choice
from bundlerun.workers.sync.rank_sync import RankSync
from bundlerun.workers.values.module_tensors import moved
from bundlerun.workers.verify.replica_check import NUM_SUMS
from bundlerun.workers.verify.verifier import Verifier

log = logging.getLogger(__name__)

_TIGHT, _LOOSE = 1e-3, 2e-2
"""How far a loss may be from the mean of its samples' losses, relatively, by rounding."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What of a trainer goes on in another round, in its process: all that a step changes."""

    stage: nn.Module
    optimizer: Optimizer
    groups: ParamGroups
    loss_scale: LossScale
    average: Average


class Trainer:
    """Trains one stage replica; every rank of the job has one.

    Args:
        config: the run's configuration.
        session: this rank's place and groups.
        stage: this rank's part of the model, freshly made, in CPU memory; or what it holds already.
        recipe: gives loss, metrics and optimizer.
        meters: gets the time of each phase.
        tally: what else all ranks tell each other in a step; None: nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        stage: nn.Module | Held,
        recipe: Recipe,
        meters: Meters,
        tally: Tally | None = None,
    ) -> None:
        self._config = config
        self._recipe = recipe
        self._session = session
        self._meters = meters
        self._tally = tally
        held = stage if isinstance(stage, Held) else None
        # Before the optimizer sees the parameters, and in CPU memory, where the stage was made.
        if not isinstance(stage, Held):
            stage = stage.double() if config.precision == "float64" else stage
            self.stage = moved(stage, session.device)
        else:
            self.stage = stage.stage
        memory_format = arrange(self.stage, config.memory_format, has_gpus=session.arrival.has_gpus)
        self.stage.train()  # a model's own may say which parameters are trained: see them so
        if held is None:
            held = self._begun_with(recipe)
        self.optimizer, self.groups = held.optimizer, held.groups
        self.loss_scale, self.average = held.loss_scale, held.average
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
        self._behind = StepsBehind(
            config, session, self.sync, self.optimizer, self._update, self.average, meters
        )
        # Loss, metrics, counts and batch norm statistics travel at the end of a bucket: a step has
        # no collective but its buckets.
        self._num_sums = SmallSums.size(self._metrics, tally)
        own, statistics = self.sync.extra.tensor_split([self._num_sums])
        self._sums = SmallSums(own, self._metrics, tally)
        self._statistics = StatisticsPool(self.stage, statistics)
        # Next to each other: read together.
        self._told = self.sync.extra[: self._num_sums + len(self._statistics.counts)]
        self._begun: StepShare | None = None
        """Of the next step, where its first forward is under way."""
        self._has_moved = False
        """Whether the running statistics have, before the numbers of the step were read."""
        self._changed: Event | None = None
        arithmetic = Arithmetic(session.device, config.precision, memory_format, self.loss_scale)
        self.verifier = Verifier(
            config,
            session,
            self.stage,
            self.optimizer,
            self.average.state,
            arithmetic,
            self.sync,
            lambda: self._forward_state.is_quiet,
        )
        self._kept_elsewhere = kept_elsewhere(self.stage, session.place.stage)
        self._forward_state = ForwardState(
            self.stage, config.chunks, self.sync.all_sum, speaks=session.is_writer
        )
        self.bundle = make_bundle(
            config,
            session,
            self.stage,
            recipe,
            arithmetic,
            self._statistics,
            self._forward_state,
            meters,
            lambda forwards: self._behind.around(self.verifier.redo.around(forwards)),
        )

    def _begun_with(self, recipe: Recipe) -> Held:
        """What goes with a stage that has done no step here."""
        # After `.to`: an optimizer keeps the tensors that it is given.
        optimizer = recipe.optimizer(model_parameters(self.stage))
        check_optimizer(optimizer, self.stage)
        speaks = self._session.is_writer
        return Held(
            stage=self.stage,
            optimizer=optimizer,
            groups=ParamGroups(optimizer, speaks=speaks),
            loss_scale=LossScale.of(self._config),
            average=Average(self._config, self.stage, speaks=speaks),
        )

    @property
    def held(self) -> Held:
        """What the trainer of another round takes over."""
        return Held(
            stage=self.stage,
            optimizer=self.optimizer,
            groups=self.groups,
            loss_scale=self.loss_scale,
            average=self.average,
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
            num_extra=SmallSums.size(self._metrics, self._tally) + StatisticsPool.size(self.stage),
            num_shared_extra=NUM_SUMS,
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
        following: StepWork | None = None,
        is_ready: Callable[[], bool] = _never,
    ) -> StepResult:
        """Does one optimizer step.

        Collective: every active rank.

        Args:
            work: this bundle's part of it.
            batches: the batches of this rank's micro-batches in order; read on stage 0 only.
            steps_per_epoch: for the learning rate.
            wants_stop: whether a rank of this bundle has heard that the run is to stop; asked
                once, after the forwards.
            following: what the next call is for, with the same `batches`: a GPU gets its first
                forward before this rank waits for the numbers of this step, where none of them can
                change it; and with --overlap-forward the step may end before its sums are there,
                see `settle`. None: there is none, or nobody knows.
            is_ready: whether all ranks of this bundle are ready to go on in the next round; asked
                once, after `wants_stop`.

        Raises:
            ConfigError: a loss is no loss, or no checkpoint could hold what the optimizer keeps.
            DivergedError: the loss is no finite number, and --on-nan says to end.
        """
        # [1]
        was_behind = self._behind.begin_step()
        share, self._begun = self._begun or self._begin(work.step), None
        # [2] Forwards and backwards; buckets leave during the last backward.
        self.bundle.train(
            work,
            batches,
            share,
            before_last_backward=self.sync.arm,
            on_forwards_done=partial(
                self._forwards_done,
                share,
                wants_stop,
                is_ready,
                was_behind_at=work.step if was_behind else None,
            ),
        )
        # [3] All sums are there. From here on every replica decides by the same numbers.
        leaves = following is not None and self._may_leave(work.step)
        to_come: Collection[nn.Parameter] = ()
        if leaves:
            to_come = self.sync.finish_small()
            reading = self.sync.start_read_small(self._told, self._update.norms())
        else:
            self.sync.finish()
            reading = self.sync.start_read(self._told, self._update.norms())
        # [4] Behind the numbers, so that a GPU has something to do while this thread looks at them.
        self._go_ahead(work, steps_per_epoch)
        self.average.expect(work.step, steps_per_epoch)
        if following is not None and self._has_moved:
            self._begin_ahead(following, batches)
        numbers, norms, *copies = reading()
        told, counts = self._sums.told(numbers[: self._num_sums]), numbers[self._num_sums :]
        if self._tally is not None:
            self._tally.read(told.tally)
        if leaves and told.num_found:  # all replicas go by the same number
            self.sync.take()
            leaves = False
        # First of all: replicas that differ must not reach a snapshot. Where a forward is the first
        # one to write, it may have run before the comparison was made, which then means nothing.
        if not (self._behind.is_on and told.num_found):
            self.verifier.check(told.comparison, copies, work.step)
        if self._behind.is_on:
            self.sync.lead(told.headway)
        self._forward_state.settle(
            told.num_found,
            is_first=self._does_first(work),
            has_stepped=self._update.is_ahead,
            has_begun=self._begun is not None,
        )
        loss_scale, _ = self.loss_scale.kept
        try:
            if leaves:
                written = self._forward_state.expect_written
                has_changed = self._behind.leave_step(
                    told.loss, work, steps_per_epoch, to_come, written
                )
                if has_changed:
                    with torch.no_grad():
                        self._statistics.apply(counts)
            else:
                has_changed = self._apply(work, told, norms, counts, steps_per_epoch)
        except DivergedError:
            # All of a stage come here alike. A bit that has flipped may be what it comes from.
            self.verifier.look_at_all(work.step)
            raise
        self._check_changed(work.step)
        read = self._read_sums(told, share, work, self._metrics)
        return StepResult(
            sums=read if self._is_last else None,
            num_unreadable=share.num_unreadable,
            has_changed=has_changed,
            heard_stop=told.is_stop,
            moves=told.num_ready == self._session.topology.num_bundles,
            loss_scale=loss_scale,
        )

    def _begin(self, step: int) -> StepShare:
        """Begins a step; nothing of the one before may be left in what rides along with it."""
        self.sync.start_step(is_exact=step < self._config.exchange_from)
        begin_replays(self._config)
        self.verifier.begin_step(step)
        if not self._behind.is_open:
            self.verifier.write(self._sums.comparison, step)
        self._forward_state.begin_step()
        return self._sums.share()

    def _may_leave(self, step: int) -> bool:
        """Whether this step may end before all its sums are there."""
        # The first one, what forwards write, what replicas do again: with these all is as ever.
        is_plain = self._has_stepped and self._forward_state.is_quiet
        return is_plain and not self.verifier.redo.is_due(step) and self._behind.may_leave()

    def settle(self) -> None:
        """Returns once the state is that after the last step.

        Not collective; whoever looks at the state, or changes it, calls it first.

        Raises:
            PeerGoneError: another rank did not answer in time, or died.
        """
        self._behind.settle()

    def when_settled(self, act: Callable[[], None]) -> None:
        """Calls `act` once the state is that after the last step: at once, or in the next step."""
        self._behind.when_settled(act)

    def _go_ahead(self, work: StepWork, steps_per_epoch: int) -> None:
        """Changes parameters and statistics before anybody knows the numbers, where that can be."""
        self._has_moved, self._changed = False, None
        if not self.sync.is_all_used or self._forward_state.writes_parameters:
            return
        if self.verifier.redo.is_due(work.step):  # with what the step has begun with
            return
        with self._meters.phase("optimizer"), torch.no_grad():
            self._update.go_ahead(work.step, steps_per_epoch)
            if self._update.is_ahead and self._statistics.may_go_ahead:
                self._statistics.apply(None)
                self._has_moved = True

    def _begin_ahead(self, work: StepWork, batches: Iterator[Batch]) -> None:
        """Gives the device the first forward of the next step, where nothing can come of that.

        It gets all its work in the order in which it would get it otherwise, so it computes the
        same. A forward that may write state is not among it: what it leaves is not for this step.
        """
        is_quiet = self._forward_state.is_quiet and not self._config.verify_replicas
        if is_quiet and self.bundle.can_begin(work, batches):
            self.average.follow()
            self._changed = door.mark(self._session.device)
            self._begun = self._begin(work.step)
            self.bundle.begin(work, batches, self._begun)

    def changed(self) -> Event | None:
        """A mark after the last change of the state on a GPU; None: all that it was given so far.

        A copy of the state begins there, beside the first forward of the next step.
        """
        return self._changed

    def _check_changed(self, step: int) -> None:
        """Looks at the state that the step has left."""
        # Most optimizers make their state in their first step only.
        if not self._has_stepped:
            self._has_stepped = True
            self._check_kept()
        self.verifier.verify(step)

    def _apply(
        self,
        work: StepWork,
        told: Told,
        norms: Sequence[float],
        counts: Sequence[float],
        steps_per_epoch: int,
    ) -> bool:
        """Changes parameters and statistics by what the sync has summed; whether it did."""
        scale = self.loss_scale.value
        with self._meters.phase("optimizer"), torch.no_grad():
            has_changed = self._update.apply(
                told.loss,
                norms,
                num_samples=work.num_samples,
                step=work.step,
                steps_per_epoch=steps_per_epoch,
            )
            if has_changed and not self._has_moved:
                self._statistics.apply(counts)
            self.average.follow()
            # What rounding kept back was of these gradients, at this scale.
            if self.loss_scale.value != scale or self._update.is_weighted or not has_changed:
                self.sync.drop_feedback()
        return has_changed

    def _forwards_done(
        self,
        share: StepShare,
        wants_stop: Callable[[], bool],
        is_ready: Callable[[], bool],
        was_behind_at: int | None,
    ) -> None:
        """The small sums of the step are complete."""
        if was_behind_at is not None:
            # A rank with nothing to do in this step has had no forward that did.
            self.settle()
            self.verifier.write(self._sums.comparison, was_behind_at)
        if self._behind.is_on:
            self._sums.tell_headway(self.sync.headway)
        self._sums.complete(share, self._forward_state.count_found())
        # Asked as late as possible: what is said here is heard by all ranks after this very step.
        if wants_stop():
            self._sums.ask_to_stop()
        if is_ready():
            self._sums.say_ready()
        self._sums.complete_tally()

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
        self.settle()
        self._forward_state.begin_step()
        metrics = self._metric_sums()
        numbers = torch.zeros(
            SmallSums.size(metrics), dtype=torch.float64, device=self._session.device
        )
        sums = SmallSums(numbers, metrics)
        share = sums.share()
        for work in works:
            # One answer for all ranks: a rank that stopped alone would leave the others in a sum.
            if any(self.total([float(is_told())])):
                self._forward_state.undo()  # it is done again, from the same state
                return None
            begin_replays(self._config)
            self.bundle.evaluate(work, batches, share)
        sums.complete(share, self._forward_state.count_found())
        told = sums.told(self.sync.all_sum(numbers).tolist())
        self._forward_state.settle(told.num_found, is_first=self._does_first(works[0]))
        read = self._read_sums(told, share, works[0], metrics)
        if not self._is_last:
            return read
        more = judged(self._recipe, share, self._session, self.sync.all_sum)
        loss = math.nan if told.loss.is_of_nothing else read.loss
        read = StepSums(loss=loss, metrics=read.metrics | more)
        return replace(read, score=self._declared.best.score(read.loss, read.metrics))

    def _does_first(self, work: StepWork) -> bool:
        """Whether this rank does micro-batch 0 of the step, of all replicas of its stage."""
        return bool(work.sizes) and work.first == 0 and self._session.place.replica == 0

    def _read_sums(
        self, told: Told, share: StepShare, work: StepWork, metrics: MetricSums
    ) -> StepSums:
        """What the sums over all bundles say; `share` is this rank's part of `work`."""
        is_first = self._does_first(work)
        totals = metrics.totals(told.metrics, share, is_first=is_first, all_sum=self.sync.all_sum)
        loss = told.loss.mean(work.num_samples)
        means = {name: total / max(1, work.num_samples) for name, total in totals.items()}
        named = self._declared.told(loss, means) if self._is_last else means
        return StepSums(loss=loss, metrics=named)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums numbers over all active ranks of the job.

        Collective: every active rank, outside a step.
        """
        self.settle()
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
        self.settle()
        self.sync.copy_from_first([t.detach() for t in self.stage.state_dict().values()])

    def check_loss(self) -> None:
        """Has the losses of the first micro-batches looked at; by one rank of the last stage."""
        tolerance = _LOOSE if self._config.precision in ("bfloat16", "float16") else _TIGHT
        self.bundle.watch_losses(LossCheck(self._recipe, self._session.device, tolerance))

    def state(self) -> dict[str, Tensor]:
        """The state that the stage owns, by name; not copied, but for what a forward writes."""
        self.settle()
        tensors = state_tensors(
            self.stage, self.optimizer, self.groups, without=self._kept_elsewhere
        )
        average = self.average.state(without=self._kept_elsewhere)
        return self._forward_state.apart({**tensors, **average})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave, for the names of this stage.

        Raises:
            CheckpointError: it is of another model.
        """
        self.settle()
        load_state_tensors(self.stage, self.optimizer, tensors, self.groups)
        self.average.load(tensors)

    def check_finite(self) -> None:
        """Raises CheckpointError where a parameter is not; --on-nan ignore lets it be."""
        self.settle()
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
