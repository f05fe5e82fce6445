"""`protect`: a user's own training loop, kept in the memory of the nodes after each step.

    with protect(model, optimizer, scheduler) as run:
        for step in run.steps(10_000):
            ...                                 # as before

    enter     [1] meet the other ranks    [2] take up the newest state, from memory or disk
    a step    [3] the user's code; [4] before its optimizer steps, all ranks have the step before
              [5] the copy of this one begins    [6] told to stop?
    exit      [7] the last state on disk

All ranks of the job are one bundle of one stage, as wide as the job: what they keep they share out,
so each copies its part, and gradients are summed by whatever the user sums them by.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from bundlerun.launcher.errors import EXIT_RESUMABLE, ConfigError
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.outcome import write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.own.barren import count_start
from bundlerun.workers.own.each_rank import EachRank
from bundlerun.workers.own.history import LoopHistory
from bundlerun.workers.own.kept import OwnState
from bundlerun.workers.own.objects import Objects, Stateful, fingerprints, first_difference
from bundlerun.workers.own.process.joined import FOLDER_VARIABLE, Joined, joined, read_env, told
from bundlerun.workers.own.protection import Protection
from bundlerun.workers.rank.life.stopping import Stopping, StopRequest, StopWord
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.run.keeper import Keeper, Resumed, look
from bundlerun.workers.run.saving import Saving
from bundlerun.workers.snapshot.buddies import Buddies
from bundlerun.workers.snapshot.pace import Pace
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.snapshot.snapshots import Snapshots, Source

log = logging.getLogger(__name__)

_NOT_OPEN = "the run is not open; use it inside of `with protect(...) as run:`"


def protect(
    *objects: Stateful,
    run_dir: str | Path = "",
    each_rank: Sequence[Stateful] = (),
    protection: Protection | None = None,
) -> Run:
    """Keeps the state of a training loop, so that a restart goes on after the last step.

    Collective: every rank of the job, which a launcher has started, or one process by itself.
    Use it as `with protect(model, optimizer) as run: for step in run.steps(n)`.

    Args:
        objects: what makes up the state, the same on all ranks: modules (as they are or in
            DistributedDataParallel), optimizers, schedulers, scalers, whatever has state_dict and
            load_state_dict. Random numbers are kept by themselves.
        run_dir: folder of the run, which all nodes share; a run that is in it goes on. Empty: a
            folder of the job in runs/.
        each_rank: further objects, whose state each rank has for itself, such as a data loader's.
        protection: how often, and where to.

    Raises:
        ConfigError: an object has no state, or one that cannot be kept.
    """
    if not isinstance(protection, Protection | None):
        raise ConfigError(
            f"protection={protection!r} is no Protection; give it such as Protection(keep=5)"
        )
    if not isinstance(each_rank, Sequence):
        raise ConfigError(
            f"each_rank is a {type(each_rank).__name__}; give a list of objects: each_rank=[loader]"
        )
    return Run(objects, run_dir=str(run_dir), each_rank=each_rank, protection=protection)


class Run:
    """A protected loop; made by `protect`, and used in a `with`."""

    def __init__(
        self,
        objects: Sequence[Stateful],
        *,
        run_dir: str = "",
        each_rank: Sequence[Stateful] = (),
        protection: Protection | None = None,
    ) -> None:
        if not objects:
            raise ConfigError("protect() got nothing to keep; give it the model and the optimizer")
        self._objects = Objects(objects)
        self._device = _device_of(self._objects)
        self._each_rank = EachRank(each_rank, self._objects, self._device)
        self._objects.check()
        self._each_rank.check()
        self._env = read_env()
        # A launcher's word counts more: its agent has the folder already.
        run_dir = os.environ.get(FOLDER_VARIABLE) or run_dir
        self._config = (protection or Protection()).config(self._env.world_size, run_dir)
        self._held = ExitStack()
        self._parts: _Parts | None = None
        self._run_dir: Path | None = None
        self._step = 0
        self._is_stopped = False
        self._is_over = False
        self._num_checks = 0
        self._noted: dict[str, float] = {}

    # --- what a user asks

    @property
    def step(self) -> int:
        """Finished steps of the run."""
        return self._step

    @property
    def is_stopped(self) -> bool:
        """Whether the loop has ended before its last step, as somebody has asked it to."""
        return self._is_stopped

    @property
    def run_dir(self) -> Path:
        """The folder of the run; known from the begin of the `with` on."""
        if self._run_dir is None:
            raise ConfigError(_NOT_OPEN)
        return self._run_dir

    def note(self, **values: float) -> None:
        """What the history is to have of the step under way, such as its loss; the first rank's."""
        self._noted |= {name: float(value) for name, value in values.items()}

    def steps(self, num_steps: int) -> Iterator[int]:
        """The numbers of the steps that are left of `num_steps`; each is kept once it is done.

        Collective: every rank, with the same number. Ends early where the run is told to stop
        (`bundlerun drain`, a signal), on all ranks after the same step. A step that is left with
        `break` does not count as done.

        Raises:
            ConfigError: called outside of the `with`.
        """
        run = self._of_run
        while self._step < num_steps and not self._is_stopped:
            start = time.perf_counter()
            run.stopping.begin_step()
            # [3]
            yield self._step
            self._finish(run, time.perf_counter() - start)

    # --- the `with`

    def __enter__(self) -> Self:
        """Meets the other ranks, and takes up the run's state where there is one."""
        if self._parts is not None or self._is_over:
            raise ConfigError("this run was entered before; call protect() once more for another")
        with ExitStack() as made:
            # [1]
            now = joined(self._config, self._env, self._device, made)
            self._run_dir = Path(now.config.run_dir)
            with now.life, told(now.life):
                self._parts = self._make(now, made)
            self._held = made.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keeps the last state on disk; after an error nothing more than what is kept already."""
        run, life = self._of_run, self._of_run.joined.life
        self._parts, self._is_over = None, True
        # An error ends the process before the rest is unwound, but for one that a message explains.
        with self._held, life, told(life):
            if error is not None:
                raise error
            self._end(run)

    @property
    def _of_run(self) -> _Parts:
        if self._parts is None:
            raise ConfigError(_NOT_OPEN)
        return self._parts

    def _make(self, now: Joined, made: ExitStack) -> _Parts:
        config, session, life = now.config, now.session, now.life
        meters = Meters()
        state = OwnState(session, self._objects, self._each_rank)
        self._check_alike(state)
        restore = Restore(config, session.arrival, is_reporter=session.is_reporter)
        made.callback(restore.room.close)
        keeper = Keeper(config, session, state, restore)
        # [2]
        found = look(config, session, restore)
        resumed = keeper.resume(found)
        history = None
        if session.is_reporter:
            history = made.enter_context(LoopHistory(RunPaths(Path(config.run_dir))))
            history.begins(session.topology, resumed)
        self._begin(now, resumed)
        snapshots = Snapshots(
            session,
            restore.room,
            source=Source(
                state=state.taken, feedback=self._each_rank.taken, situation=state.situation
            ),
            meters=meters,
            pace=Pace(config.snapshot_steps, compares=_is_gpu(self._device)),
            restored=resumed.snapshot if resumed else None,
            era=found.era,
            buddies=Buddies(
                session,
                restore.room,
                share=config.copy_share,
                tell=lambda text: life.events.note("copies short", {"text": text}),
                is_first_start=now.env.attempt == 0,
            ),
        )
        made.callback(snapshots.close)
        # A rank about to end completes its copy first: the next start may need it.
        life.before_end(snapshots.finish_copy)
        looks_lost = history.looks_lost if history is not None else None
        saving = Saving(keeper, snapshots, state.total, meters, looks_lost)
        run = _Parts(
            joined=now,
            state=state,
            restore=restore,
            keeper=keeper,
            snapshots=snapshots,
            saving=saving,
            stopping=_stopping(now, history),
            history=history,
        )
        for optimizer in self._objects.optimizers:
            made.callback(optimizer.register_step_pre_hook(lambda *_: self._gate(run)).remove)
        return run

    def _begin(self, now: Joined, resumed: Resumed | None) -> None:
        self._step = resumed.progress.step if resumed else 0
        source = resumed.source if resumed else "nothing"
        paths, session = RunPaths(Path(now.config.run_dir)), now.session
        if session.is_reporter:
            if not now.has_board and now.env.is_launched:
                count_start(paths, self._step, is_first=now.env.attempt == 0)
            paths.outcome.unlink(missing_ok=True)
            text = f"resumes after step {self._step}, from a {source}" if resumed else "begins"
            log.info("%s: %s", paths.root, text)
        now.life.begins_at(self._step)
        now.life.events.note("restored", {"step": self._step, "source": source})

    # --- a step

    def _gate(self, run: _Parts) -> None:
        """Returns once all ranks have the step before (I8): an optimizer is about to change it."""
        # [4]
        changed = self._objects.look()
        run.snapshots.before_first()
        run.snapshots.before_last()
        if changed:
            log.warning(
                "%s is changed outside of an optimizer's step, and is copied at once from here on",
                changed[0],
            )

    def _finish(self, run: _Parts, step_s: float) -> None:
        heard = run.stopping.is_wanted()
        # No optimizer has stepped where a loss scale has left the step out, for example.
        self._gate(run)
        self._step += 1
        life = run.joined.life
        life.finished(self._step)
        if run.history is not None:
            run.history.finished(self._step - 1, self._noted)
        self._noted = {}
        # [5]
        after = run.saving.after_step(self._progress(), step_s)
        if after.adapted is not None and run.joined.session.is_reporter:
            log.info(
                "a snapshot every %d steps from here on: one takes %.1f %% of a step",
                after.adapted.every, 100 * after.adapted.share,
            )  # fmt: skip
        # An optimizer has its state from its first step on.
        if self._num_checks < 2:
            self._check_alike(run.state)
        # [6] All ranks have heard the same.
        every = run.joined.config.checkpoint_steps
        if heard:
            self._is_stopped = True
            life.agree_to_stop()
            run.saving.checkpoint(self._progress())
            run.state.total([0.0])  # a barrier: it is written
        elif every and self._step % every == 0:
            run.saving.checkpoint(self._progress())

    def _progress(self) -> Progress:
        return Progress(step=self._step, epoch=0, step_in_epoch=self._step, samples_seen=0)

    def _check_alike(self, state: OwnState) -> None:
        """Raises ConfigError where ranks differ in what they are to have alike; collective."""
        self._num_checks += 1
        found = fingerprints(self._objects.state())
        text = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        session = state.session
        if len(set(session.gather_bundle(text))) == 1:
            return
        every = session.gather_bundle([session.arrival.node_name, found])
        raise ConfigError(first_difference([(str(node), prints) for node, prints in every]))

    # --- the end

    def _end(self, run: _Parts) -> None:
        # [7]
        now, progress = run.joined, self._progress()
        if not self._is_stopped and any(
            run.state.total([float(not run.keeper.is_saved(self._step))])
        ):
            run.snapshots.before_last()
            run.saving.checkpoint(progress)
        ending = run.saving.end(progress, is_stopped=self._is_stopped)
        if ending.kept == "disk":
            # Memory that outlives the process (I7) is given back once the disk has the same.
            run.restore.room.give_up()
        if run.history is not None:
            run.history.ends(self._step, is_stopped=ending.is_stopped)
            log.info("%s: %s", now.config.run_dir, ending.outcome.reason)
            write_outcome(RunPaths(Path(now.config.run_dir)), ending.outcome)
            run.stopping.forget()
        now.life.events.note("stops" if ending.is_stopped else "done", {"step": self._step})
        if ending.outcome.exit_code == EXIT_RESUMABLE:
            now.life.ends(EXIT_RESUMABLE)
        run.snapshots.close()
        now.session.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What an open run is made of."""

    joined: Joined
    state: OwnState
    restore: Restore
    keeper: Keeper
    snapshots: Snapshots
    saving: Saving
    stopping: Stopping
    history: LoopHistory | None
    """On one rank of all."""


def _stopping(now: Joined, history: LoopHistory | None) -> Stopping:
    request = StopRequest(
        RunPaths(Path(now.config.run_dir)),
        lambda: now.life.is_told_to_stop,
        is_reporter=now.session.is_reporter,
        is_lost=history.looks_lost if history is not None else lambda: False,
    )
    return Stopping(request, StopWord(now.session.groups))


def _device_of(objects: Objects) -> torch.device:
    tensors = (t for module in objects.modules for t in module.parameters())
    first = next(tensors, None)
    return torch.device("cpu") if first is None else first.device


def _is_gpu(device: torch.device) -> bool:
    from bundlerun.workers.device.accelerator import is_gpu

    return is_gpu(device)
