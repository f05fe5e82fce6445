"""A rank's way through the run: epochs of steps, and what comes behind each of both.

step     train | agent and history hear of it | snapshot | told to stop? | checkpoint, if due
epoch    steps | share measurements | validate | checkpoint | where the time went
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.outcome import Outcome
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.keeper import Keeper
from bundlerun.workers.rank.liveness import Liveness
from bundlerun.workers.rank.meters import EPOCH_END_PHASES, PHASES, Meters
from bundlerun.workers.rank.session import Session
from bundlerun.workers.rank.stopping import StopRequest, StopWord
from bundlerun.workers.report.reporter import Reporter
from bundlerun.workers.snapshot.pace import share
from bundlerun.workers.snapshot.snapshots import Snapshots
from bundlerun.workers.state.ending import Kept, outcome_of
from bundlerun.workers.step import StepResult, StepSums, StepWork
from bundlerun.workers.trainer import Trainer


class Run:
    """The loop over epochs and steps."""

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        feed: Feed,
        trainer: Trainer,
        keeper: Keeper,
        meters: Meters,
        reporter: Reporter | None,
        snapshots: Snapshots | None,
        life: Liveness,
        request: StopRequest,
        stop: StopWord,
    ) -> None:
        self.step = 0
        """Finished steps."""
        self.is_stopped = False
        """Whether the run was told to stop before its end."""
        self.kept: Kept = "nowhere"
        """Where the last state is, once the run is over."""
        self._has_lost_folder = False
        self._epoch = 0
        self._config = config
        self._session = session
        self._feed = feed
        self._trainer = trainer
        self._keeper = keeper
        self._meters = meters
        self._reporter = reporter
        self._snapshots = snapshots
        self._life = life
        self._request = request
        self._stop = stop

    @property
    def outcome(self) -> Outcome:
        """How the run ended; state and code are the same on all ranks, the words the reporter's."""
        return outcome_of(
            self.step,
            is_stopped=self.is_stopped,
            has_lost_folder=self._has_lost_folder,
            kept=self.kept,
            why=self._keeper.why_unsaved,
            where=self._keeper.where_in_memory,
        )

    def train_from(self, progress: Progress) -> None:
        """Trains from `progress` to the end of the run."""
        self.step, self._epoch = progress.step, progress.epoch
        for epoch in range(progress.epoch, self._config.epochs):
            first = progress.step_in_epoch if epoch == progress.epoch else 0
            self._train_epoch(epoch, first)
            if self.is_stopped or self._is_over(self.step):
                break
        self.kept = self._keep_last()
        if self._reporter is not None:
            is_as_asked = self.kept == "disk" and not self._has_lost_folder
            self._reporter.finish(self.outcome, is_as_asked=is_as_asked)

    def _keep_last(self) -> Kept:
        """Where the last state is, all ranks alike; what no disk has, memory is made to have."""
        if self._snapshots is not None:
            self._snapshots.before_last()
        if not self._is_missing():
            return "disk"
        in_epoch = self.step - self._epoch * self._feed.steps_per_epoch
        if self._has_lost_folder:  # after the last checkpoint
            self._save(self._epoch, in_epoch)
            if not self._is_missing():
                return "disk"
        progress = self._progress(self._epoch, in_epoch)
        is_lost = (
            self._keeper.has_refused(self.step)
            or self._snapshots is None
            or not self._snapshots.save_last(progress)
        )
        if any(self._trainer.total([float(is_lost)])):
            return "nowhere"
        self._keeper.mark_unsaved(self.step)
        return "memory"

    def _is_missing(self) -> bool:
        """Whether there is no checkpoint of the last step, and what of the folder; the same on all.

        Collective: every active rank.
        """
        is_missing = has_lost = False
        if self._reporter is not None:
            has_lost = self._reporter.looks_lost() or self._reporter.has_lost_folder
            is_missing = not self._keeper.is_saved(self.step)
        num_missing, num_lost = self._trainer.total([float(is_missing), float(has_lost)])
        self._has_lost_folder = num_lost > 0
        if has_lost:
            self._keeper.keep_run_id()
        return num_missing > 0

    def _is_over(self, step: int) -> bool:
        return 0 < self._config.max_steps <= step

    def _train_epoch(self, epoch: int, first: int) -> None:
        feed, reporter = self._feed, self._reporter
        self._epoch = epoch
        self.step = epoch * feed.steps_per_epoch + first
        self._num_unreadable = 0
        self._num_microbatches = 0
        self._meters.restart()
        if reporter is not None:
            reporter.start_epoch(epoch, first)
        works, batches = feed.epoch(epoch, first)
        for work in works:
            if self._is_over(self.step):
                break
            start = time.perf_counter()
            self._stop.begin(self._request.is_heard)
            result = self._trainer.step(work, batches, feed.steps_per_epoch, self._stop.finish)
            self.step += 1
            self._life.finished(self.step)
            if reporter is not None:
                reporter.all_finished()  # of the step before: all have it, as this one's sum says
            row = self._row(work, epoch, result)
            is_kept = self._take_snapshot(epoch, time.perf_counter() - start, row)
            self._num_unreadable += result.num_unreadable
            self._num_microbatches += len(work.sizes)
            if reporter is not None:
                reporter.step(row, is_kept=is_kept)
            if result.heard_stop:
                self._stop_after(epoch)
                return
            self._maybe_save(epoch)
        self._end_epoch(epoch)

    def _stop_after(self, epoch: int) -> None:
        """Keeps what there is, and lets no rank go before it is on disk."""
        self.is_stopped = True
        self._life.agree_to_stop()
        self._save(epoch, self.step - epoch * self._feed.steps_per_epoch)
        self._trainer.total([0.0])

    def _row(self, work: StepWork, epoch: int, result: StepResult) -> dict[str, Any]:
        """What the history says of the step that is finished; the last stage knows."""
        if self._session.place.stage != self._session.topology.num_stages - 1:
            return {}
        return {
            "step": work.step,
            "epoch": epoch,
            "loss": result.sums.loss,
            "lr": self._trainer.groups.lr,
            "samples": work.num_samples,
            "metrics": result.sums.metrics,
            **({} if result.has_changed else {"left_out": True}),
        }

    def _take_snapshot(self, epoch: int, step_s: float, row: Mapping[str, Any]) -> bool:
        """Whether there is to be one of this step."""
        if self._snapshots is None:
            return False
        in_epoch = self.step - epoch * self._feed.steps_per_epoch
        pace = self._snapshots.pace
        is_kept = pace.is_due(self.step)
        self._snapshots.save(replace(self._progress(epoch, in_epoch), row=row))
        if pace.stepped(step_s):
            cost, step = self._trainer.total(pace.measured())
            if pace.review(cost, step) and self._reporter is not None:
                self._reporter.snapshot_steps(pace.every, share(cost, step))
        return is_kept

    def _maybe_save(self, epoch: int) -> None:
        every = self._config.checkpoint_steps
        in_epoch = self.step - epoch * self._feed.steps_per_epoch
        if every and self.step % every == 0 and in_epoch < self._feed.steps_per_epoch:
            self._save(epoch, in_epoch)

    def _save(self, epoch: int, in_epoch: int, validation: StepSums | None = None) -> None:
        with self._meters.phase("checkpoint"):
            self._keeper.save(self._progress(epoch, in_epoch, validation))

    def _progress(self, epoch: int, in_epoch: int, validation: StepSums | None = None) -> Progress:
        return Progress(
            step=self.step,
            epoch=epoch,
            step_in_epoch=in_epoch,
            samples_seen=self._feed.samples_after(epoch, in_epoch),
            metrics={} if validation is None else validation.metrics,
            score=None if validation is None else validation.score,
            optimizer=type(self._trainer.optimizer).__name__,
            seed=self._config.seed,
        )

    def _end_epoch(self, epoch: int) -> None:
        """Measures, validates and saves; where the run ends inside the epoch, just so.

        Told to stop while it validates, it does so at once, and whoever goes on begins here.
        """
        self._share_measurements(epoch)
        sums = None
        if self._feed.has_validation:
            with self._meters.phase("validate"):
                works, batches = self._feed.validation()
                is_told = lambda: self._request.is_heard  # noqa: E731
                sums = self._trainer.evaluate(works, batches, is_told=is_told)
            if sums is None:
                self._stop_after(epoch)
                return
            if self._reporter is not None:
                self._reporter.validated(epoch, self.step, sums)
        in_epoch = self.step - epoch * self._feed.steps_per_epoch
        if in_epoch == self._feed.steps_per_epoch:
            self._save(epoch + 1, 0, sums)
        else:
            self._save(epoch, in_epoch, sums)
        self._report_epoch_end()

    def _share_measurements(self, epoch: int) -> None:
        """Every bundle learns how fast all are; the reporter learns where the time went."""
        seconds = self._meters.seconds()
        self._meters.restart()
        num_bundles = self._session.topology.num_bundles
        busy = (seconds["forward"] + seconds["backward"]) / max(1, self._num_microbatches)
        per_bundle = [0.0] * num_bundles
        per_bundle[self._session.place.bundle] = busy
        totals = self._trainer.total(
            [float(self._num_unreadable), *per_bundle, *(seconds[p] for p in PHASES)]
        )
        if self._config.share == "measured":
            self._feed.set_speeds(totals[1 : 1 + num_bundles])
        if self._reporter is not None:
            num_ranks = len(self._session.topology.active_ranks)
            phases = zip(PHASES, totals[1 + num_bundles :], strict=True)
            self._reporter.end_epoch(
                epoch, self.step, {p: s / num_ranks for p, s in phases}, int(totals[0])
            )

    def _report_epoch_end(self) -> None:
        """The reporter learns what validating and saving took, which come after the epoch's row."""
        seconds = self._meters.seconds()
        totals = self._trainer.total([seconds[phase] for phase in EPOCH_END_PHASES])
        if self._reporter is not None:
            num_ranks = len(self._session.topology.active_ranks)
            phases = zip(EPOCH_END_PHASES, totals, strict=True)
            self._reporter.add_phases({p: s / num_ranks for p, s in phases})
