"""Trains one rank of a bundle; torchrun, `bundlerun run` or nobody starts it.

torchrun --nproc-per-node=4 -m workers.train --model resnet50 --shape 1,1 /data/imagenet
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.multiprocessing.errors import record

from launcher.board import Board
from launcher.checkpoints import Progress
from launcher.config import TrainConfig, parse_train_argv
from launcher.errors import EXIT_DONE, EXIT_RESUMABLE, BundleError
from launcher.events import Events
from launcher.hardware import apply_layout, rank_layout, read_cpus
from launcher.outcome import Outcome, write_outcome
from launcher.paths import RunPaths
from launcher.preflight import check_torch, check_writable
from launcher.stop_request import request_stop
from workers.bundle import StepWork
from workers.env import RankEnv
from workers.feed import Feed
from workers.keeper import Keeper, Resumed, look
from workers.liveness import Liveness, process_age_s
from workers.meters import EPOCH_END_PHASES, PHASES, Meters
from workers.recipe import BUILT_IN, load_recipe
from workers.reporter import Reporter
from workers.restore import Restore
from workers.session import (
    Arrival,
    End,
    Session,
    arrive,
    join,
    open_store,
    tell_end,
    wait_for_end,
)
from workers.snapshot import Snapshots
from workers.snapshot_folder import SnapshotRoom
from workers.snapshot_pace import Pace, share
from workers.stage import check_stages, make_stage, open_data
from workers.stopping import StopRequest, StopWord
from workers.trainer import Trainer

log = logging.getLogger(__name__)

START = Progress(step=0, epoch=0, step_in_epoch=0, samples_seen=0)

# Loaded with this module, not by each rank: bundlerun forks the ranks from a process that has it.
for _name in BUILT_IN.values():
    importlib.import_module(_name)


def preflight(config: TrainConfig) -> None:
    """Raises BundleError for what can be known to fail before any rank meets another."""
    check_inputs(config)
    check_stages(config, load_recipe(config))


def check_inputs(config: TrainConfig) -> None:
    """The quick part of `preflight`: torch, the run folder, the data."""
    check_torch()
    check_writable(Path(config.run_dir), "--run-dir")
    load_recipe(config).check()


def train(config: TrainConfig, env: RankEnv, store: Store, life: Liveness | None = None) -> int:
    """Joins the round and trains to the end, or until the run is told to stop.

    Args:
        config: the same on every rank.
        env: what the agent told this rank.
        store: where the ranks of this round meet; fresh.
        life: what the agent sees of this rank; None: nobody looks.

    Returns:
        The exit code: done, or stopped and resumable.

    Raises:
        BundleError: what the user can act on.
    """
    life = life or Liveness.none()
    with life:
        arrival = arrive(config, env, store)
        if arrival.place.is_spare:
            end = stand_by(config, arrival, life)
            return EXIT_RESUMABLE if end == "stopped" else EXIT_DONE
        session = join(config, arrival)
        life.events.note("met", {"rank": session.place.rank})
        run = _run(config, session, life, is_first_start=env.attempt == 0)
        if session.is_reporter and session.topology.spare_ranks:
            tell_end(store, "stopped" if run.is_stopped else "safe" if run.is_saved else "lost")
    return EXIT_RESUMABLE if run.is_stopped else EXIT_DONE


def _run(config: TrainConfig, session: Session, life: Liveness, *, is_first_start: bool) -> Run:
    paths = RunPaths(Path(config.run_dir))
    recipe = load_recipe(config)
    meters = Meters()
    # An error ends the process inside `life`: unwinding would wait for ranks that are gone.
    with ExitStack() as stack, life:
        info, data = open_data(recipe, session)
        feed = Feed(config, session, info, data)
        stack.callback(feed.close)
        restore = None
        if config.snapshot == "on":
            restore = Restore(config, session.arrival, is_reporter=session.is_reporter)
            stack.callback(restore.room.close)
        found = look(config, session, restore)
        stage = make_stage(
            config, recipe, info, session.place.stage, is_loaded_later=found.is_snapshot
        )
        trainer = Trainer(config, session, stage, recipe, meters)
        stack.callback(trainer.close)
        keeper = Keeper(config, session, trainer, restore)
        resumed = keeper.resume(found)
        if resumed is None:
            trainer.copy_from_first()
        else:
            feed.check_resumable(resumed.progress, resumed.source)
        snapshots = None
        if restore is not None:
            snapshots = make_snapshots(config, session, trainer, restore.room, meters, resumed)
            stack.callback(snapshots.close)
            life.before_end(snapshots.finish_copy)
        reporter = None
        if session.is_reporter:
            reporter = stack.enter_context(
                Reporter(config, session.topology, recipe.unit, feed.steps_per_epoch)
            )
            paths.outcome.unlink(missing_ok=True)
            if resumed is not None:
                reporter.resumed(resumed.progress, resumed.source)
        progress = resumed.progress if resumed else START
        source = resumed.source if resumed else "nothing"
        life.events.note("restored", {"step": progress.step, "source": source})
        request = StopRequest(
            paths,
            lambda: life.is_told_to_stop,
            is_reporter=session.is_reporter,
            is_first_start=is_first_start,
        )
        stop = StopWord(session)
        run = Run(
            config, session, feed, trainer, keeper, meters, reporter, snapshots, life, request, stop
        )
        run.train_from(progress)
        if restore is not None:
            restore.room.is_done = run.is_saved
        if session.is_reporter:
            if run.is_stopped:
                request.forget()
            write_outcome(paths, run.outcome)
        life.events.note("stops" if run.is_stopped else "done", {"step": run.step})
    return run


def stand_by(config: TrainConfig, arrival: Arrival, life: Liveness) -> End:
    """What a spare rank does: lends what its node remembers, and waits for the end."""
    log.info("rank %d is spare: no bundle needs it", arrival.place.rank)
    life.events.note("spare", {"rank": arrival.place.rank})
    paths = RunPaths(Path(config.run_dir))
    life.when_told_to_stop(partial(request_stop, paths, f"node {arrival.node_name} is to stop"))
    if config.snapshot == "off":
        return wait_for_end(arrival.store)
    restore = Restore(config, arrival, is_reporter=False)
    restore.lend()
    end = wait_for_end(arrival.store)
    restore.room.is_done = end != "lost"
    restore.room.close()
    return end


def make_snapshots(
    config: TrainConfig,
    session: Session,
    trainer: Trainer,
    room: SnapshotRoom,
    meters: Meters,
    resumed: Resumed | None,
) -> Snapshots:
    """The snapshots of this rank, on which its sync waits from now on.

    Collective: the bundle.
    """
    snapshots = Snapshots(
        session,
        room,
        state=trainer.state,
        feedback=trainer.sync.feedback,
        situation=trainer.sync.feedback_situation,
        meters=meters,
        pace=Pace(config.snapshot_steps),
        restored=resumed.snapshot if resumed else None,
    )
    trainer.sync.hold(snapshots)
    return snapshots


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
    def is_saved(self) -> bool:
        """Whether there is a checkpoint of the last step, as far as this rank sees."""
        return self._keeper.is_saved(self.step)

    @property
    def outcome(self) -> Outcome:
        """How the run ended."""
        if self.is_stopped:
            kept = "a checkpoint" if self.is_saved else "no checkpoint, as it could not be written"
            return Outcome(
                state="stopped",
                exit_code=EXIT_RESUMABLE,
                reason=f"told to stop; there is {kept} of step {self.step}",
                step=self.step,
            )
        return Outcome(state="done", exit_code=EXIT_DONE, reason="all steps done", step=self.step)

    def train_from(self, progress: Progress) -> None:
        """Trains from `progress` to the end of the run."""
        self.step = progress.step
        for epoch in range(progress.epoch, self._config.epochs):
            first = progress.step_in_epoch if epoch == progress.epoch else 0
            self._train_epoch(epoch, first)
            if self.is_stopped or self._is_over(self.step):
                break
        if self._reporter is not None:
            self._reporter.finish(is_stopped=self.is_stopped)

    def _is_over(self, step: int) -> bool:
        return 0 < self._config.max_steps <= step

    def _train_epoch(self, epoch: int, first: int) -> None:
        feed, reporter = self._feed, self._reporter
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
            self._stop.begin(self._trainer.heard_stop)
            self._trainer.wants_stop = self._request.is_heard
            outcome = self._trainer.step(work, batches, feed.steps_per_epoch)
            self.step += 1
            self._life.finished(self.step)
            if reporter is not None:
                reporter.all_finished()  # of the step before: all have it, as this one's sum says
            row = self._row(work, epoch)
            is_kept = self._take_snapshot(epoch, time.perf_counter() - start, row)
            self._num_unreadable += outcome.num_unreadable
            self._num_microbatches += len(work.sizes)
            if reporter is not None:
                reporter.step(row, is_kept=is_kept)
            if self._stop.finish():
                self._stop_after(epoch)
                return
            self._maybe_save(epoch)
        self._end_epoch(epoch)

    def _stop_after(self, epoch: int) -> None:
        """Keeps what there is, and lets no rank go before it is on disk."""
        self.is_stopped = True
        self._life.agree_to_stop()
        self._save(epoch, self.step - epoch * self._feed.steps_per_epoch, {})
        self._trainer.total([0.0])

    def _row(self, work: StepWork, epoch: int) -> dict[str, Any]:
        """What the history says of the step that is finished; the last stage knows."""
        if self._session.place.stage != self._session.topology.num_stages - 1:
            return {}
        sums = self._trainer.last_sums
        return {
            "step": work.step,
            "epoch": epoch,
            "loss": sums.loss,
            "lr": self._trainer.optimizer.param_groups[0]["lr"],
            "samples": work.num_samples,
            "metrics": sums.metrics,
        }

    def _take_snapshot(self, epoch: int, step_s: float, row: Mapping[str, Any]) -> bool:
        """Whether there is to be one of this step."""
        if self._snapshots is None:
            return False
        in_epoch = self.step - epoch * self._feed.steps_per_epoch
        pace = self._snapshots.pace
        is_kept = pace.is_due(self.step)
        self._snapshots.save(replace(self._progress(epoch, in_epoch, {}), row=row))
        if pace.stepped(step_s):
            cost, step = self._trainer.total(pace.measured())
            if pace.review(cost, step) and self._reporter is not None:
                self._reporter.snapshot_steps(pace.every, share(cost, step))
        return is_kept

    def _maybe_save(self, epoch: int) -> None:
        every = self._config.checkpoint_steps
        in_epoch = self.step - epoch * self._feed.steps_per_epoch
        if every and self.step % every == 0 and in_epoch < self._feed.steps_per_epoch:
            self._save(epoch, in_epoch, {})

    def _save(self, epoch: int, in_epoch: int, metrics: dict[str, float]) -> None:
        with self._meters.phase("checkpoint"):
            self._keeper.save(self._progress(epoch, in_epoch, metrics))

    def _progress(self, epoch: int, in_epoch: int, metrics: dict[str, float]) -> Progress:
        return Progress(
            step=self.step,
            epoch=epoch,
            step_in_epoch=in_epoch,
            samples_seen=self._feed.samples_after(epoch, in_epoch),
            metrics=metrics,
            seed=self._config.seed,
        )

    def _end_epoch(self, epoch: int) -> None:
        """Measures, validates and saves; where the run was stopped inside the epoch, just so."""
        self._share_measurements(epoch)
        metrics: dict[str, float] = {}
        if self._feed.has_validation:
            with self._meters.phase("validate"):
                sums = self._trainer.evaluate(*self._feed.validation())
            metrics = sums.metrics
            if self._reporter is not None:
                self._reporter.validated(epoch, self.step, sums)
        in_epoch = self.step - epoch * self._feed.steps_per_epoch
        if in_epoch == self._feed.steps_per_epoch:
            self._save(epoch + 1, 0, metrics)
        else:
            self._save(epoch, in_epoch, metrics)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank to its end and returns the exit code.

    A rank that was told to stop returns 0 to an agent, which would start it again otherwise; the
    agent's board, and outcome.json, say that it was.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    life = Liveness.none()
    try:
        env = RankEnv.from_mapping(os.environ)
        config = parse_train_argv(sys.argv[1:] if argv is None else argv, os.environ)
        life = _liveness(config, env)
        layout = rank_layout(
            env.local_rank,
            env.local_world_size,
            read_cpus(),
            threads=config.threads,
            affinity=config.affinity and env.is_launched,
        )
        apply_layout(layout)
        if env.is_launched:
            # A wrong cut ends all ranks alike when they make their stages, which costs no more.
            check_inputs(config)
        else:
            preflight(config)
            if sum(config.shape) > 1:
                log.info("one process without a launcher: the model is trained unsplit")
                config = replace(config, shape=(1,), cut=(), chunks=1, schedule="auto")
        code = train(config, env, open_store(env, config.timeout_s), life)
    except BundleError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)  # noqa: T201
        life.events.note("failed", {"text": f"error: {exc}", "exit_code": exc.exit_code})
        code = exc.exit_code
    life.ends(code)
    return EXIT_DONE if code == EXIT_RESUMABLE and life.is_launched else code


def _liveness(config: TrainConfig, env: RankEnv) -> Liveness:
    if not env.is_launched:
        return Liveness.none()
    paths = RunPaths(Path(config.run_dir))
    who = {"local_rank": env.local_rank, "attempt": env.attempt}
    events = Events(paths.node_events(env.node_name), env.node_name, who)
    life = Liveness(Board.open(os.environ), events, env.local_rank, is_launched=True)
    life.tell_run_dir(paths.root)
    events.note("starts", {"pid": os.getpid(), "age_s": round(process_age_s(), 3)})
    return life


if __name__ == "__main__":
    sys.exit(record(main)())
