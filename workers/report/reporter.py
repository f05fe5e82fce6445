"""Tells the world how the run goes: console, history, summary. One rank has it."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import noun_for
from bundlerun.launcher.corruption.compared import ONE_REPLICA, are_compared
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.candidate import Forecast
from bundlerun.launcher.planning.forecast_words import forecast_line
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.outcome import Outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.rows import KEPT
from bundlerun.launcher.trackers.started import StartedTrackers
from bundlerun.launcher.why.pace import pace_of
from bundlerun.launcher.why.pace_words import pace_text
from bundlerun.launcher.why.rows import why_row
from bundlerun.launcher.why.sums import RankSums
from bundlerun.workers.report.bar import ProgressBar
from bundlerun.workers.report.best import LOSS, Best
from bundlerun.workers.report.forecast.beside import beside
from bundlerun.workers.report.measures import Gpus, Shared
from bundlerun.workers.report.metrics import MetricsWriter
from bundlerun.workers.report.summary import Summary, read_summary, summary_lines
from bundlerun.workers.report.words import Course
from bundlerun.workers.step import StepSums

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Epoch:
    """The epoch under way, as far as this attempt does it.

    Args:
        first_step: the first of its steps, of the run.
        begun_s: when that began.
        samples: that have been trained on.
    """

    first_step: int
    begun_s: float = field(default_factory=time.perf_counter)
    samples: int = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.begun_s


class Reporter:
    """Reports one attempt of a run.

    Args:
        config: of the run.
        topology: of this round.
        course: where the run goes to.
        best: which validation is.
    """

    def __init__(
        self,
        config: TrainConfig,
        topology: Topology,
        course: Course,
        best: Best = Best(),  # noqa: B008 (frozen)
    ) -> None:
        self._config = config
        self._best = best
        self._is_best_told = False
        self._course = course
        self._paths = RunPaths(Path(config.run_dir))
        # Replaced by that of earlier attempts in `resumed`.
        self._summary = Summary()
        self._epoch = _Epoch(first_step=0)
        self._untold = ""
        self._num_bundles = topology.num_bundles
        self._ranks: tuple[RankSums, ...] = ()
        self._forecast: Forecast | None = None
        self._finished: Mapping[str, Any] | None = None
        self._has_lost_folder = False
        self._bar: ProgressBar | None = None
        self._begins: tuple[Topology, Progress] | None = None
        """A round that all go on in, once the last step before it is told."""
        self._writer = MetricsWriter(self._paths)
        _write(self._paths.config, config.to_json())
        self._trackers = StartedTrackers(self._paths, config.trackers)
        log.info(
            "%s of shape %s on %s; global batch %d = %s of %d",
            _count(topology.num_bundles, "bundle"),
            topology.shape,
            _count(topology.num_nodes, "node"),
            config.batch_size,
            _count(config.num_microbatches, "micro-batch"),
            config.samples_per_microbatch,
        )
        self._tell_begin(topology)

    def _tell_begin(self, topology: Topology) -> None:
        """In the history, and what is asked for and cannot be done."""
        config = self._config
        is_asked = config.verify_steps > 0 or config.quarantine
        is_off = is_asked and not are_compared(topology.shape.widths, topology.num_bundles)
        if is_off:
            log.info("--verify-steps: %s", ONE_REPLICA)
        self._writer.write(
            "start",
            bundles=topology.num_bundles,
            nodes=topology.num_nodes,
            shape=f"{topology.shape}",
            chunks=topology.chunks_per_stage,
            steps=self._course.num_steps,
            unit=self._course.unit,
            **({"verify": ONE_REPLICA} if is_off else {}),
        )

    def resumed(self, progress: Progress, source: str) -> None:
        """Says where training resumes; the summary continues that of earlier attempts.

        Takes the rows of steps that are done again out of the history.

        Args:
            progress: how far the run had come.
            source: "snapshot", "checkpoint", or "nothing", where neither was left.
        """
        # The epoch's end comes after its last step's snapshot, and after a stop during validation.
        is_end_to_come = (
            source != "checkpoint" or progress.step_in_epoch == self._course.steps_per_epoch
        )
        num_out = self._writer.forget(progress.step, with_ends=is_end_to_come, last=progress.row)
        if source == "nothing":
            if num_out:
                log.warning("begins at step 0 again: there is neither a snapshot nor a checkpoint")
                self._writer.write("restart", step=0, epoch=0, source=source)
            return
        # An attempt that died wrote no summary, so the counts come from the state itself.
        self._summary = read_summary(self._paths)
        self._summary.epochs, self._summary.steps = progress.epoch, progress.step
        log.info(
            "resumed after step %d, in epoch %d, from a %s",
            progress.step, progress.epoch + 1, source,
        )  # fmt: skip
        self._writer.write("restart", step=progress.step, epoch=progress.epoch, source=source)

    def moved(self, topology: Topology, progress: Progress) -> None:
        """Says that all ranks go on in another round, in their processes, and some join them.

        Args:
            topology: of that round.
            progress: how far the run has come.
        """
        if self._bar is not None:
            self._bar.close()
        self._num_bundles = topology.num_bundles
        log.info(
            "%s of shape %s on %s go on after step %d",
            _count(topology.num_bundles, "bundle"),
            topology.shape,
            _count(topology.num_nodes, "node"),
            progress.step,
        )
        if self._finished is None:
            self._tell_moved(topology, progress)
        else:
            self._begins = topology, progress

    def _tell_moved(self, topology: Topology, progress: Progress) -> None:
        self._tell_begin(topology)
        self._writer.write("restart", step=progress.step, epoch=progress.epoch, source="hand-over")

    def looks_lost(self) -> bool:
        """Whether the run folder was deleted or renamed under the run; if so, makes it again."""
        if not self._writer.is_gone:
            # Once lost stays lost: a later call finds the new folder, and must not forget the old.
            return self._has_lost_folder
        self._has_lost_folder = True
        log.error(
            "%s was deleted or renamed while the run goes on, and what other nodes need with it: "
            "the run stops, with its history and its state in a new folder of that name",
            self._paths.root,
        )
        try:
            self._writer.make_again()
        except OSError as exc:
            log.error("cannot make %s again: %s", self._paths.root, exc.strerror)
        _write(self._paths.config, self._config.to_json())
        return True

    def foresee(self, forecast: Forecast) -> None:
        """Says what a step is foreseen to take; each epoch's steps are put beside it."""
        self._forecast = forecast
        course = self._course
        log.info(
            "foreseen: %s",
            forecast_line(
                forecast, self._config.batch_size, num_steps=course.num_steps, unit=course.unit
            ),
        )

    def snapshot_steps(self, every: int, share: float) -> None:
        """Says how often snapshots are taken from now on.

        Args:
            every: steps between two.
            share: what one takes of a step.
        """
        log.info(
            "a snapshot takes %.1f %% of a step: %s (--snapshot-steps says otherwise)",
            100 * share,
            "one after each step" if every == 1 else f"one every {every} steps",
        )

    def start_epoch(self, epoch: int, first_step: int) -> None:
        """Opens the progress bar where somebody watches."""
        self._epoch = _Epoch(first_step=epoch * self._course.steps_per_epoch + first_step)
        total = self._course.steps_in(epoch)
        title = self._course.epoch_text(epoch)
        self._bar = ProgressBar.where_drawn(sys.stderr, os.environ, title, total, first_step)

    def step(self, row: Mapping[str, Any], *, is_kept: bool = False) -> None:
        """Reports one step.

        Args:
            row: step, epoch, loss, lr, samples, metrics.
            is_kept: a snapshot of it is under way; the step is told with `all_finished`, when no
                death can undo it any more.
        """
        self._finished = row
        # A death before the snapshot is complete on all ranks (I8) would undo the step.
        self._writer.hold("step", **row, **({KEPT: True} if is_kept else {}))
        if not is_kept:
            self.all_finished()

    def all_finished(self) -> None:
        """All ranks have finished the last step that was reported."""
        if self._finished is None:
            return
        # Several callers may say so for the same step; it is told once.
        row, self._finished = self._finished, None
        step: int = row["step"]
        self._writer.release()
        self._summary.steps = step + 1
        if self._begins is not None:
            # The row of the last step of the round before, which nobody can undo any more.
            self._tell_moved(*self._begins)
            self._begins = None
            return
        self._epoch.samples += row["samples"]
        seconds = max(1e-9, self._epoch.seconds)
        # Of this attempt's steps only: those before a resume took time that is not in `seconds`.
        step_s = seconds / (step + 1 - self._epoch.first_step)
        pace = (self._epoch.samples / seconds, step_s * (self._course.num_steps - step - 1))
        is_last = step + 1 == self._course.num_steps
        if self._bar is not None:
            self._bar.update(partial(self._course.bar_text, row, *pace))
            return
        # Kept even where it is not told now: a run that stops says how its last step was.
        self._untold = self._course.step_text(row, *pace)
        if is_last or (step + 1) % self._config.log_steps == 0:
            self._tell_step()

    def _tell_step(self) -> None:
        if self._untold:
            log.info("%s", self._untold)
        self._untold = ""

    def end_epoch(self, epoch: int, step: int, shared: Shared) -> None:
        """Closes the epoch's training part, whose steps all ranks have finished."""
        self.all_finished()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        seconds, samples = self._epoch.seconds, self._epoch.samples
        summary = self._summary
        summary.epochs = epoch + 1
        summary.num_unreadable += shared.num_unreadable
        # Samples per second over all epochs, from the sum of samples; earlier attempts count, too.
        trained = summary.samples_per_s * summary.train_s + samples
        summary.train_s += seconds
        summary.samples_per_s = trained / summary.train_s
        self.add_phases(shared.phases)
        self._ranks = shared.ranks
        self._writer.write(
            "epoch", step=step, epoch=epoch, seconds=seconds,
            samples_per_s=samples / seconds, phases=dict(shared.phases),
            **_of_gpus(shared.gpus, samples / seconds),
        )  # fmt: skip

    def add_phases(self, phases: Mapping[str, float]) -> None:
        """Adds seconds per phase, mean over the ranks, to the summary."""
        for phase, seconds in phases.items():
            total = self._summary.phases.get(phase, 0.0)
            self._summary.phases[phase] = total + seconds

    def tell_why(self, epoch: int, step: int, end: Mapping[str, float]) -> None:
        """Says what the time of the epoch went for.

        Args:
            epoch: whose training has been told.
            step: finished steps.
            end: seconds of what followed it, mean over the ranks.
        """
        # Only the ranks of one bundle write checkpoints: of them it is the mean that counts.
        took = {**end, "checkpoint": end.get("checkpoint", 0.0) * self._num_bundles}
        pace = pace_of(self._ranks, took)
        if pace is None:
            return
        text = pace_text(pace, self._ranks)
        self._writer.write("why", **why_row(epoch, step, pace, self._ranks, took, text))
        log.info("%s  %s", self._course.epoch_text(epoch), text)
        self._tell_beside(epoch, step)

    def _tell_beside(self, epoch: int, step: int) -> None:
        """Says how far the steps of the epoch were from what was foreseen."""
        if self._forecast is None:
            return
        found = beside(self._forecast, self._ranks, step - self._epoch.first_step)
        if found is not None:
            self._writer.write("forecast", **found.row(epoch, step))
            log.info("%s  %s", self._course.epoch_text(epoch), found.text)

    def validated(self, epoch: int, step: int, sums: StepSums) -> None:
        """Reports one validation."""
        # A model may tell its losses in training only.
        has_loss = not math.isnan(sums.loss)
        values = {**sums.metrics, **({"loss": sums.loss} if has_loss else {})}
        self._summary.validation = values
        name = self._best.decides(sums.metrics)
        before = self._score(name, self._summary.best)
        # A resumed run may have another recipe, whose metric the best so far does not have.
        if math.isnan(before) or self._score(name, values) > before:
            self._summary.best = {**values, "epoch": epoch}
        self._tell_best(name)
        loss = sums.loss if has_loss else None
        self._writer.write("eval", step=step, epoch=epoch, loss=loss, metrics=sums.metrics)
        texts = [f"loss {loss:.4f}"] if loss is not None else []
        texts.append(self._course.metrics_text(sums.metrics))
        log.info("%s  validation  %s", self._course.epoch_text(epoch), "  ".join(texts))

    def _score(self, name: str, values: Mapping[str, float]) -> float:
        """How good a validation was, by `name`; NaN where it, of another recipe, has no such value.

        That the recipe names what it never gives is the trainer's to say.
        """
        if name not in values:
            return math.nan
        return self._best.score(values.get(LOSS, math.nan), {name: values[name]})

    def _tell_best(self, name: str) -> None:
        """Says once by what the best checkpoint is found, where nobody has said it."""
        if self._best.name or name == LOSS or name in self._course.shares or self._is_best_told:
            return
        self._is_best_told = True
        log.info(
            "the best checkpoint is the one with the highest %s; a recipe with "
            'best = ("%s", "min") says otherwise', name, name,
        )  # fmt: skip

    def finish(self, outcome: Outcome, *, is_as_asked: bool = True) -> None:
        """Writes the summary, and says it where the run is done; else what became of it.

        Args:
            outcome: how the run ended.
            is_as_asked: it was told to stop, and did so with its state on disk.
        """
        self.all_finished()
        summary = self._summary
        _write(self._paths.summary, json.dumps(asdict(summary), indent=2))
        if outcome.state != "done":
            self._tell_step()
            self._writer.write("stop", step=summary.steps)
            if is_as_asked:
                log.info(
                    "stopped after step %d, as asked; with --run-dir %s the same command continues",
                    summary.steps,
                    self._paths.root,
                )
            else:
                log.error("%s", outcome.reason)
            return
        self._writer.write("end", **asdict(summary))
        for line in summary_lines(summary, self._course):
            log.info("%s", line)
        log.info("run folder   %s", self._paths.root)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._writer.close()
        self._trackers.close()


def _of_gpus(gpus: Gpus | None, samples_per_s: float) -> dict[str, object]:
    """What an epoch's row says of each GPU, and of its memory by stage; nothing on the CPU."""
    if gpus is None:
        return {}
    peaks = {f"stage{number}": peak for number, peak in enumerate(gpus.peak_bytes)}
    return {"samples_per_s_per_gpu": samples_per_s / gpus.count, "gpu_peak_bytes": peaks}


def _write(path: Path, text: str) -> None:
    """Writes a file that the run can do without: a full disk must not end it."""
    try:
        write_text(path, text)
    except OSError as exc:
        log.warning("cannot write %r: %s; continuing without it", str(path), exc.strerror)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun_for(number, noun)}"
