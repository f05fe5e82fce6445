"""A rank's way through the run: epochs of steps, and what comes after each.

step     [1] train | [2] agent | [3] snapshot | [4] history, shares | [5] stop? | [6] checkpoint
epoch    steps | [7] share measurements | [8] validate | [9] checkpoint | [10] where the time went
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from typing import Any

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.order import Speeds
from bundlerun.workers.rank.life.stopping import Stopping
from bundlerun.workers.report.audience import Audience
from bundlerun.workers.report.measured_steps import MeasuredSteps
from bundlerun.workers.report.measures import Measures
from bundlerun.workers.report.profiling import Profiling
from bundlerun.workers.run.given_back import trim
from bundlerun.workers.run.saving import Saving
from bundlerun.workers.shares.shares import Shares
from bundlerun.workers.state.ending import Ending
from bundlerun.workers.step import StepResult, StepSums, StepWork, with_raw
from bundlerun.workers.trainer import Trainer


class Run:
    """The loop over epochs and steps.

    Args:
        config: of the run.
        feed: what this rank works on.
        trainer: does a step.
        saving: takes snapshots and writes checkpoints.
        measures: where the time goes.
        measured: steps that are measured action by action.
        profiling: steps that torch's profiler sees.
        stopping: whether this step is the last.
        shares: who does how many micro-batches.
        audience: agent, history and console.
    """

    def __init__(
        self,
        config: TrainConfig,
        feed: Feed,
        trainer: Trainer,
        saving: Saving,
        measures: Measures,
        measured: MeasuredSteps,
        profiling: Profiling,
        stopping: Stopping,
        shares: Shares,
        audience: Audience,
    ) -> None:
        self._config = config
        self._feed = feed
        self._trainer = trainer
        self._saving = saving
        self._measures = measures
        self._measured = measured
        self._profiling = profiling
        self._stopping = stopping
        self._shares = shares
        self._audience = audience
        self._moves = False
        """All ranks go on in another round."""
        self._epoch = 0
        self._first_epoch = 0
        """Of this start."""
        self._step = 0
        """Finished steps."""
        self._has_trimmed = False
        self.last: Progress | None = None
        """With the last step that is finished, and its row."""

    def train_from(self, progress: Progress) -> Ending | None:
        """Trains from `progress` to the end of the run, or until it is told to stop.

        Collective: every active rank.

        Returns:
            None where all ranks go on in another round, from `last`.
        """
        self._step, self._epoch = progress.step, progress.epoch
        self._first_epoch = progress.epoch
        is_stopped = False
        for epoch in range(progress.epoch, self._config.epochs):
            # Only the first epoch of this start may begin in its middle.
            first = progress.step_in_epoch if epoch == progress.epoch else 0
            is_stopped = not self._train_epoch(epoch, first)
            if self._moves:
                return None
            if is_stopped or self._has_all_steps:
                break
        ending = self._saving.end(self._progress(), is_stopped=is_stopped)
        self._audience.finish(ending.outcome, is_as_asked=ending.is_as_asked)
        return ending

    @property
    def _has_all_steps(self) -> bool:
        return 0 < self._config.max_steps <= self._step

    @property
    def _step_in_epoch(self) -> int:
        """Finished steps of the epoch."""
        return self._step - self._epoch * self._feed.steps_per_epoch

    def _train_epoch(self, epoch: int, first: int) -> bool:
        """Does the steps from `first` on, and the epoch's end; False where told to stop."""
        feed = self._feed
        self._epoch = epoch
        self._step = epoch * feed.steps_per_epoch + first
        self._measures.restart()
        self._audience.start_epoch(epoch, first)
        works, batches = feed.epoch(epoch, first)
        for work, following in pairwise(chain(works, [None])):
            if self._has_all_steps or work is None:
                break
            start = time.perf_counter()
            # [1]
            self._stopping.begin_step()
            num_done = self._step_in_epoch - first
            num_in_pass = feed.steps_per_epoch - first
            self._measured.begin(
                self._step,
                num_epochs=epoch - self._first_epoch,
                num_done=num_done,
                num_in_pass=num_in_pass,
            )
            self._profiling.begin(self._step)
            self._shares.begin_step()
            is_last = self._step + 1 == self._config.max_steps
            result = self._trainer.step(
                work,
                batches,
                feed.steps_per_epoch,
                self._stopping.is_wanted,
                None if is_last else following,
                self._stopping.are_ready,
            )
            self._profiling.end()
            self._measured.end()
            self._step += 1
            self._after_step(work, result, time.perf_counter() - start)
            if not self._has_trimmed:
                # The first step leaves holes between what stays: the optimizer's state was made
                # next to what it needed for a moment.
                self._has_trimmed = True
                trim()
            # [5] All ranks agree on this, so all leave the loop after the same step.
            if result.heard_stop:
                self._stop()
                return False
            self._maybe_save()
            # Not at an epoch's end, which is done by who have done the epoch.
            is_inside = num_done + 1 < num_in_pass and not self._has_all_steps
            if result.moves and is_inside and self._moves_on():
                return True
        return self._end_epoch()

    def _moves_on(self) -> bool:
        """Keeps the state for the next round; whether all ranks go on in it."""
        assert self.last is not None
        self._moves = self._saving.keep_for_next(self.last)
        if not self._moves:
            self._stopping.stays("not all ranks have the state of the last step in memory")
        return self._moves

    def _after_step(self, work: StepWork, result: StepResult, step_s: float) -> None:
        """Reports the result of a step, and takes a snapshot of it once its state is there."""
        # What asks all ranks is not for the middle of the next step.
        if result.heard_stop or result.moves or self._is_to_save or self._saving.is_review_next:
            self._trainer.settle()
        # The row goes into the snapshot: the reporter may die before it is in the history.
        progress = replace(self._progress(), row=self._row(work, result))
        self._trainer.when_settled(partial(self._finish_step, progress, step_s))
        self._measures.count(num_microbatches=len(work.sizes), num_unreadable=result.num_unreadable)
        # [4]
        self._audience.shares(self._shares.end_step(self._step, len(work.sizes)))

    def _finish_step(self, progress: Progress, step_s: float) -> None:
        """The state is that of `progress`."""
        # [2]
        self._audience.finished(progress.step)
        # [3]
        self.last = progress
        after = self._saving.after_step(progress, step_s)
        # The pace has just been chosen by what snapshots cost.
        if after.adapted is not None:
            self._audience.snapshot_steps(after.adapted.every, after.adapted.share)
        # [4]
        self._audience.step(progress.row, is_kept=after.is_kept)

    def _row(self, work: StepWork, result: StepResult) -> dict[str, Any]:
        """What the history says of the step that is finished; the last stage knows."""
        if result.sums is None:
            return {}
        return {
            "step": work.step,
            "epoch": self._epoch,
            "loss": result.sums.loss,
            "lr": self._trainer.groups.lr,
            "samples": work.num_samples,
            "metrics": result.sums.metrics,
            **({} if result.has_changed else {"left_out": True}),
            **({"loss_scale": result.loss_scale} if result.loss_scale else {}),
        }

    def _stop(self) -> None:
        """Keeps what there is, and lets no rank go before it is on disk."""
        # First: should a rank die while it saves, the next start stops, too.
        self._audience.agree_to_stop()
        self._saving.checkpoint(self._progress())
        # A sum of nothing, as a barrier: bundle 0 joins it when the checkpoint is written.
        self._trainer.total([0.0])

    @property
    def _is_to_save(self) -> bool:
        """Whether a checkpoint is due."""
        every = self._config.checkpoint_steps
        # [6] The last step of an epoch gets its checkpoint from `_end_epoch`, after validation.
        is_inside = self._step_in_epoch < self._feed.steps_per_epoch
        return bool(every) and self._step % every == 0 and is_inside

    def _maybe_save(self) -> None:
        if self._is_to_save:
            self._saving.checkpoint(self._progress())

    def _progress(self) -> Progress:
        """How far the run has come."""
        return self._progress_at(self._epoch, self._step_in_epoch)

    def _progress_at(self, epoch: int, step_in_epoch: int) -> Progress:
        loss_scale, loss_scale_steps = self._trainer.loss_scale.kept
        return Progress(
            step=self._step,
            epoch=epoch,
            step_in_epoch=step_in_epoch,
            samples_seen=self._feed.samples_after(epoch, step_in_epoch),
            optimizer=type(self._trainer.optimizer).__name__,
            seed=self._config.seed,
            loss_scale=loss_scale,
            loss_scale_steps=loss_scale_steps,
            verified=self._trainer.verifier.verified_at(self._step),
        )

    def _end_epoch(self) -> bool:
        """Measures, validates and saves; also where the run ends inside the epoch.

        A run that is told to stop while it validates stops at once; a resume validates again.

        Returns:
            False where told to stop.
        """
        # [7]
        self._share_measures()
        progress = self._progress()
        if self._step_in_epoch == self._feed.steps_per_epoch:
            # Whoever resumes from it begins the next epoch, and does not validate again.
            progress = self._progress_at(self._epoch + 1, 0)
        if self._feed.has_validation:
            # [8]
            sums = self._validate()
            if sums is None:
                self._stop()
                return False
            self._audience.validated(self._epoch, self._step, sums)
            progress = replace(progress, metrics=sums.metrics, score=sums.score)
        # [9]
        self._saving.checkpoint(progress)
        # [10] After the epoch's row, as [8] and [9] are not in it.
        end = self._measures.share_end()
        self._audience.add_phases(end)
        self._audience.tell_why(self._epoch, self._step, end)
        return True

    def _validate(self) -> StepSums | None:
        """The result of the validation; None where a rank was told to stop.

        Where the weights are averaged, it is that of the average; that of the weights is beside it.
        """
        with self._measures.phase("validate"):
            found = self._evaluate()
            if found is None or not self._trainer.average.is_kept:
                return found
            # The average takes the place of the weights, which a snapshot may still be copying.
            self._saving.settle()
            with self._trainer.average.in_place():
                averaged = self._evaluate()
            return None if averaged is None else with_raw(averaged, found)

    def _evaluate(self) -> StepSums | None:
        works, batches = self._feed.validation()
        is_told = lambda: self._stopping.is_heard  # noqa: E731
        return self._trainer.evaluate(works, batches, is_told=is_told)

    def _share_measures(self) -> None:
        """Every bundle learns how fast all are; the reporter learns where the time went."""
        shared = self._measures.share()
        if self._shares.is_by_epoch:
            fill_s = (0.0,) * len(shared.busy_s)
            self._feed.share_from(self._step, Speeds(tuple(shared.busy_s), fill_s))
        self._audience.end_epoch(self._epoch, self._step, shared)
