"""One start of a rank: makes what it needs, each thing from those before it, and trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.step_range import StepRange
from bundlerun.launcher.run_folder.checkpoints import Progress, Survey
from bundlerun.launcher.run_folder.outcome import write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.sheet import Talk
from bundlerun.splits.weights.loading import Initial
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.same_data import check_same_data
from bundlerun.workers.model.division import division_lines
from bundlerun.workers.model.example import share_example
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.stage import cut_model, open_data
from bundlerun.workers.rank.arrival.session import End, Session
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.rank.life.stopping import Stopping, StopRequest, StopWord
from bundlerun.workers.rank.memory_guard import MemoryGuard
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import DataInfo, DataSets, Recipe, load_recipe, model_inputs
from bundlerun.workers.report.audience import Audience
from bundlerun.workers.report.declared import Declared
from bundlerun.workers.report.forecast.foreseen import foreseen
from bundlerun.workers.report.measured_steps import MeasuredSteps
from bundlerun.workers.report.measures import Measures
from bundlerun.workers.report.profiling import Profiling
from bundlerun.workers.report.reporter import Reporter
from bundlerun.workers.report.words import Course
from bundlerun.workers.run.course import Run
from bundlerun.workers.run.given_back import give_back
from bundlerun.workers.run.hand_over import Joiner, Kept, Moved, Mover, Way
from bundlerun.workers.run.keeper import Found, Keeper, Resumed, look
from bundlerun.workers.run.kept_back import NamedRemainders
from bundlerun.workers.run.passing_on import FirstGate
from bundlerun.workers.run.same_model import check_same_model, described
from bundlerun.workers.run.saving import Saving
from bundlerun.workers.run.trained import Trained
from bundlerun.workers.shares.shares import Shares
from bundlerun.workers.snapshot.buddies import Buddies
from bundlerun.workers.snapshot.pace import Pace
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.snapshots import Snapshots, Source
from bundlerun.workers.state.ending import Ending
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.trainer import Held, Trainer

log = logging.getLogger(__name__)

START = Progress(step=0, epoch=0, step_in_epoch=0, samples_seen=0)


def train_rank(
    config: TrainConfig,
    session: Session,
    life: Liveness,
    stack: ExitStack,
    *,
    is_first_start: bool,
    may_shrink: bool = False,
    way: Way | None = None,
) -> Ending | Moved | End:
    """Makes what a rank needs, each thing from those before it, and trains; `stack` closes them.

    Args:
        may_shrink: see `MemoryGuard`.
        way: how it has come into its round and may leave it; None: it begins, and stays.

    Returns:
        How the run has ended; that of the round before, where others were to come from there; or
        what goes on in another round.
    """
    way = way or Way()
    kept, joiner, mover, passer = way.kept, way.joiner, way.mover, way.passer
    # At once: who joins waits for it.
    given = passer.give(kept.snapshots.piece()) if kept and passer else None
    # What goes on in the next round is not closed with this one.
    lasting = stack.enter_context(ExitStack())
    recipe = kept.recipe if kept else load_recipe(config)
    meters = Meters.of(session.device, life.sheet)
    paths = RunPaths(Path(config.run_dir))
    finished = lambda: life.num_finished  # noqa: E731
    shares_gpu = session.arrival.shares_gpu
    with MemoryGuard(
        config, session.device, finished, may_shrink=may_shrink, shares_gpu=shares_gpu
    ):
        info, data = (kept.info, kept.data) if kept else open_data(recipe, session)
        feed = Feed(config, session, info, data, kept.feed if kept else None)
        # Pushed as soon as it is made: what fails later then closes it, too.
        lasting.callback(feed.close)
        shares = Shares(config, session, meters, feed)
        here = _Here(config, session, recipe, meters, info, data, feed, shares)
        if joiner is not None:
            own = _made_beside(here, joiner, lasting)
            if not isinstance(own, _Own):
                return own
        elif kept is not None:
            trainer = here.trainer(kept.held)
            own = _Own(trainer, None, kept.cuts, kept.found, kept.restore, kept.start)
            lasting.callback(kept.restore.room.close)
        else:
            own = _made_anew(here, lasting, is_first_start=is_first_start)
        trainer, initial, restore, found = own.trainer, own.initial, own.restore, own.start
        stack.callback(trainer.close)
        remainders = NamedRemainders(
            session, trainer.stage, trainer.sync, is_rounded=not config.exchange_form.is_exact
        )
        trained = Trained(session, trainer, remainders)
        keeper = Keeper(config, session, trained, restore, info.about)
        # Only now: loading needs the stage's names and the optimizer, which the trainer has.
        if kept is not None:
            resumed: Resumed | None = kept.resumed()
        elif joiner is not None and restore is not None:
            resumed = keeper.take_up(restore, joiner.passer.take(restore.room))
        else:
            resumed = keeper.resume(found)
        if passer is not None and resumed is not None:
            feed.rest(resumed.progress.step, passer.num_bundles)
            life.has_moved(way.number)
        if resumed is None and initial is not None and not found.is_nothing:
            initial.load(trainer.stage)  # there were checkpoints, and all were damaged
        elif resumed is not None and config.init_from and session.is_reporter and is_first_start:
            log.info("the run goes on from its %s: --init-from is not read", resumed.source)
        _begin_verifying(trainer, found, resumed)
        del initial  # it may hold a model's worth of memory
        own = replace(own, initial=None)
        _begin(session, feed, trainer, resumed)
        snapshots = None
        if restore is not None:
            buddies = Buddies(
                session,
                restore.room,
                share=config.copy_share,
                tell=lambda text: life.events.note("copies short", {"text": text}),
                is_first_start=is_first_start,
            )
            snapshots = make_snapshots(
                config,
                session,
                trainer,
                remainders,
                restore.room,
                meters,
                resumed,
                found.era,
                buddies,
            )
            lasting.callback(snapshots.close)
            finish_copy = snapshots.finish_copy
            if kept is not None and given is not None:
                gate = FirstGate(kept.snapshots, given, snapshots)
                trainer.sync.hold(gate)
                finish_copy = gate.finish_copy
            # A rank about to end completes its copy first: the next start may need it.
            life.before_end(finish_copy)
        reporter = kept.reporter if kept else None
        if reporter is not None:
            lasting.push(reporter)
        elif kept is None:
            reporter = _open_reporter(config, session, recipe, feed.steps_per_epoch, lasting)
        progress = _tell_start(session, life, reporter, resumed, has_moved=kept is not None)
        if reporter is not None:
            _foresee(config, session, trainer, own.cuts, reporter)
        looks_lost = reporter.looks_lost if reporter is not None else None
        saving = Saving(keeper, snapshots, trainer.total, meters, looks_lost)
        measures = Measures(session, meters, trainer.total, shares.sending)
        measured = MeasuredSteps(paths, session, meters)
        stack.callback(measured.close)
        steps = StepRange.parse(config.profile) if config.profile else None
        profiling = Profiling(paths, session, meters, steps, is_teller=session.is_reporter)
        stopping = _stopping(paths, session, life, reporter, shares, mover)
        audience = Audience(session, life, reporter)
        run = Run(
            config, feed, trainer, saving, measures, measured, profiling, stopping, shares, audience
        )
        life.sheet.talks(Talk.NONE)
        if mover is not None and restore is not None and snapshots is not None:
            mover.watch(
                Kept(
                    recipe=recipe,
                    info=info,
                    data=data,
                    feed=feed,
                    held=trainer.held,
                    found=own.whole,
                    cuts=own.cuts,
                    restore=restore,
                    snapshots=snapshots,
                    reporter=reporter,
                    start=found,
                    token=session.token,
                )
            )
        ending = run.train_from(progress)
        profiling.close()
        if ending is None:
            assert mover is not None
            assert run.last is not None
            lasting.pop_all()
            return mover.leave(run.last)
        if restore is not None and ending.kept == "disk":
            # Memory that outlives the process (I7) is given back once the disk has the same.
            restore.room.give_up()
        if session.is_reporter:
            write_outcome(paths, ending.outcome)
            stopping.forget()  # not before that: who has asked asks again until it is there
        life.events.note("stops" if ending.is_stopped else "done", {"step": ending.outcome.step})
    return ending


@dataclass(frozen=True, slots=True)
class _Here:
    """What a rank has of a round before it has its part of the model."""

    config: TrainConfig
    session: Session
    recipe: Recipe
    meters: Meters
    info: DataInfo
    data: DataSets | None
    feed: Feed
    shares: Shares

    def trainer(self, stage: nn.Module | Held) -> Trainer:
        """That of a stage."""
        return Trainer(
            self.config, self.session, stage, self.recipe, self.meters, self.shares.tally
        )

    def check_data(self, *, is_new: bool) -> None:
        """See `check_same_data`."""
        paths = RunPaths(Path(self.config.run_dir))
        check_same_data(self.info, self.data, self.session, self.feed, paths, is_new=is_new)


@dataclass(frozen=True, slots=True)
class _Own:
    """A rank's part of the model, and what it may go on from.

    Args:
        trainer: of its stage.
        initial: weights that it was given, or would be given if nothing was found.
        cuts: names at which the model was cut.
        whole: the whole model as `described`.
        restore: finds snapshots; None: there are none.
        start: what there is to go on from.
    """

    trainer: Trainer
    initial: Initial | None
    cuts: tuple[str, ...]
    whole: Mapping[str, str]
    restore: Restore | None
    start: Found


def _made_anew(here: _Here, stack: ExitStack, *, is_first_start: bool) -> _Own:
    """What all ranks make together, as a round begins.

    Collective: every rank that is not spare.
    """
    config, session = here.config, here.session
    restore = _open_restore(config, session, stack)
    # Before the stage: a state that will be loaded for sure needs no initialisation.
    found = look(config, session, restore)
    here.check_data(is_new=found.is_nothing)
    stage, initial, cuts, whole = _own_stage(here, found, is_first_start=is_first_start)
    # Who cuts leaves circles of references, in which all other stages would stay: of much
    # that was there when the rank was forked, Python seldom looks for what nobody needs.
    give_back()
    return _Own(here.trainer(stage), initial, cuts, whole, restore, found)


def _made_beside(here: _Here, joiner: Joiner, stack: ExitStack) -> _Own | End:
    """What a rank makes that joins others, who train in the round before meanwhile.

    Returns:
        How the run has ended, where nobody comes any more.
    """
    config, session = here.config, here.session
    restore = _open_restore(config, session, stack)
    here.check_data(is_new=False)
    nothing = Found(on_disk=Survey([], {}), in_memory=0)  # as if a snapshot were there: one comes
    stage, _, cuts, whole = _own_stage(here, nothing, is_first_start=False, checks=False)
    give_back()
    # Where sums are to be measured the others have to be there.
    is_alone = ways_of(config, session.arrival).is_settled
    trainer = here.trainer(stage) if is_alone else None
    joiner.has_prepared()
    check_same_model(session, whole)
    found = joiner.wait()
    if not isinstance(found, Found):
        return found
    return _Own(trainer or here.trainer(stage), None, cuts, whole, restore, found)


def _open_restore(config: TrainConfig, session: Session, stack: ExitStack) -> Restore | None:
    """Finds snapshots; None if there are none."""
    if config.snapshot != "on":
        return None
    restore = Restore(config, session.arrival, is_reporter=session.is_reporter)
    stack.callback(restore.room.close)
    return restore


def _own_stage(
    here: _Here, found: Found, *, is_first_start: bool, checks: bool = True
) -> tuple[nn.Module, Initial | None, tuple[str, ...], Mapping[str, str]]:
    """One stage of the model, as a new run begins with it, for this rank; the others are let go.

    Collective: every rank that is not spare.

    Args:
        checks: whether all have made the same model; else the caller does.

    Returns:
        And the weights that it was given, or would be given if nothing was found; the names at
        which the model was cut; the whole model as `described`.
    """
    config, session, recipe, feed, info = (
        here.config, here.session, here.recipe, here.feed, here.info
    )  # fmt: skip
    example = share_example(feed, session, recipe, config.shape.num_stages)
    # One rank for all: what it refuses ends the run like any wrong input that one rank finds.
    compares = session.has_first_microbatch and is_first_start and found.is_nothing
    cut = cut_model(
        config,
        recipe,
        info,
        is_loaded_later=found.is_snapshot,
        only=None if compares else session.place.stage,
        example=example,
    )
    whole = described(cut.stages)
    if checks:
        check_same_model(session, whole)
    stage, initial = cut.stages[session.place.stage], None
    if found.is_nothing:
        initial = cut.initial(config, info)
        if initial is not None:
            initial.load(stage)
    elif not found.is_snapshot:
        # In case all checkpoints are damaged; a run that goes on does without, if they are gone.
        with suppress(ConfigError):
            initial = cut.initial(config, info)
    if compares:
        check_fidelity(
            cut.subject(),
            first_inputs=partial(_first_inputs, feed, recipe),
            longest_s=config.timeout_s / 4,
        )
    if session.is_reporter and is_first_start:
        weights = initial.lines() if initial is not None and found.is_nothing else []
        division = division_lines(config, cut.stages, example) if len(cut.stages) > 1 else ()
        for line in (*weights, *cut.remarks, *division):
            log.info("%s", line)
    return stage, initial, cut.cuts, whole


def _first_inputs(feed: Feed, recipe: Recipe) -> tuple[Any, ...] | None:
    """What the model is called with first, in CPU memory."""
    inputs = feed.first_inputs()
    return None if inputs is None else model_inputs(recipe, inputs)


def _begin(session: Session, feed: Feed, trainer: Trainer, resumed: Resumed | None) -> None:
    """Makes all replicas equal in a new run; in a resumed one, checks that the data fits."""
    if resumed is not None:
        feed.check_resumable(resumed.progress, resumed.source)
        return
    # All were built from one seed; the copy makes them equal whatever else the user's code used.
    trainer.copy_from_first()
    if session.is_reporter:
        trainer.check_loss()


def _begin_verifying(trainer: Trainer, found: Found, resumed: Resumed | None) -> None:
    """From here on replicas are compared."""
    progress = resumed.progress if resumed else START
    # What a run has gone back to was verified since, which the state itself could not know.
    is_back = progress.step <= found.trusted
    verified = progress.step if is_back else progress.verified
    trainer.verifier.begins(found.era, progress.step, verified)


def _open_reporter(
    config: TrainConfig, session: Session, recipe: Recipe, steps_per_epoch: int, stack: ExitStack
) -> Reporter | None:
    """What tells the world how the run goes; on one rank of all."""
    if not session.is_reporter:
        return None
    said = Declared.of(recipe)
    course = Course.of(config, steps_per_epoch, recipe.unit, said.shares)
    reporter = stack.enter_context(Reporter(config, session.topology, course, said.best))
    # It tells how an earlier start has ended, which does not hold any more.
    RunPaths(Path(config.run_dir)).outcome.unlink(missing_ok=True)
    return reporter


def _foresee(
    config: TrainConfig,
    session: Session,
    trainer: Trainer,
    cuts: Sequence[str],
    reporter: Reporter,
) -> None:
    """Tells what a step is to take, where the run folder has a profile; a run can do without."""
    choice = trainer.sync.choice
    if choice is not None:
        scheme = choice.scheme
    else:
        scheme = "local-master" if config.sync == "auto" else config.sync
    found = foreseen(config, session, cuts, scheme)
    if found is not None:
        reporter.foresee(found)


def _tell_start(
    session: Session,
    life: Liveness,
    reporter: Reporter | None,
    resumed: Resumed | None,
    *,
    has_moved: bool = False,
) -> Progress:
    """Where the run resumes, after agent, history and console have been told."""
    progress = resumed.progress if resumed else START
    source = resumed.source if resumed else "nothing"
    life.begins_at(progress.step)
    if reporter is not None and has_moved:
        reporter.moved(session.topology, progress)
    elif reporter is not None:
        reporter.resumed(progress, source)
    brought = resumed.brought if resumed else ""
    life.events.note("restored", {"step": progress.step, "source": source, "brought": brought})
    if session.is_reporter and brought:
        log.info("the state of step %d came from memory: %s", progress.step, brought)
    if session.is_speaker:
        log.info("%s", where_line(session, progress.step, source))
    return progress


def _stopping(
    paths: RunPaths,
    session: Session,
    life: Liveness,
    reporter: Reporter | None,
    shares: Shares,
    mover: Mover | None,
) -> Stopping:
    request = StopRequest(
        paths,
        lambda: life.is_told_to_stop,
        is_reporter=session.is_reporter,
        is_lost=reporter.looks_lost if reporter is not None else lambda: False,
    )
    tally = shares.tally
    word = StopWord(session.groups, 0 if tally is None else tally.size)
    if mover is None:
        return Stopping(request, word, tally)
    return Stopping(request, word, tally, is_ready=mover.is_ready, stays=mover.give_up)


def where_line(session: Session, step: int, source: str) -> str:
    """The bundles that a node takes part in, and where training resumes; for its console."""
    places = session.topology.places
    bundles = sorted({p.bundle for p in places if p.node == session.place.node and p.bundle >= 0})
    shown = f"bundles {bundles[0]} to {bundles[-1]}" if bundles[1:] else f"bundle {bundles[0]}"
    begin = f"resumes after step {step}, from a {source}" if step else "begins"
    return (
        f"node {session.arrival.node_name}: {shown} of {session.topology.num_bundles}; "
        f"training {begin}"
    )


def make_snapshots(
    config: TrainConfig,
    session: Session,
    trainer: Trainer,
    remainders: NamedRemainders,
    room: SnapshotRoom,
    meters: Meters,
    resumed: Resumed | None,
    era: int = 0,
    buddies: Buddies | None = None,
) -> Snapshots:
    """The snapshots of this rank, on which its sync waits from now on.

    Collective: the bundle.
    """
    snapshots = Snapshots(
        session,
        room,
        source=Source(
            state=trainer.state,
            feedback=remainders.feedback,
            situation=remainders.situation,
            changed=trainer.changed,
        ),
        meters=meters,
        # Of the job, not of this rank: all take theirs after the same steps.
        pace=Pace(config.snapshot_steps, compares=session.arrival.has_gpus),
        restored=resumed.snapshot if resumed else None,
        era=era,
        verified_every=trainer.verifier.keep_every,
        verified=trainer.verifier.verified,
        buddies=buddies,
    )
    # From here on a sync waits for the bundle's snapshot of the step before (I8).
    trainer.sync.hold(snapshots)
    return snapshots
