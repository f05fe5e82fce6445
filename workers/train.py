"""Trains one rank of a bundle; torchrun, `bundlerun run` or nobody starts it.

torchrun --nproc-per-node=4 -m bundlerun.workers.train --model resnet50 --shape 1,1 /data/imagenet
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.multiprocessing.errors import record

from bundlerun.launcher.agent.init import stand_before
from bundlerun.launcher.agent.limits import raise_open_files
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import ConsoleHandler
from bundlerun.launcher.deciding.decision import with_kept_decision
from bundlerun.launcher.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    BundleError,
    CorruptionError,
)
from bundlerun.launcher.layout.idle import Batch, warnings
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.one_device import in_one_stage
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.profile_request import ProfileRequest
from bundlerun.launcher.preflight import check_torch, check_writable
from bundlerun.launcher.process import leave
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.fault import is_follower
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import request_stop
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.workers.device.start import DeviceStart
from bundlerun.workers.device.switches import prepare
from bundlerun.workers.model.cut_names import names_of_cuts
from bundlerun.workers.model.cut_table import cut_table
from bundlerun.workers.model.stage import check_stages, foreseen_division
from bundlerun.workers.profile.profiled import profile_of
from bundlerun.workers.rank.arrival.open_store import open_store
from bundlerun.workers.rank.arrival.session import (
    Arrival,
    End,
    arrive,
    join,
    tell_end,
    wait_for_end,
)
from bundlerun.workers.rank.cores import take_cores
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.alone import life_of
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.rank.run_start import claimed_folder, with_run_folder
from bundlerun.workers.rank.said_once import said_once
from bundlerun.workers.recipe import BUILT_IN, Recipe, load_recipe
from bundlerun.workers.report.declared import Declared
from bundlerun.workers.run.hand_over import Joiner, Moved, Mover, Way
from bundlerun.workers.run.start import train_rank
from bundlerun.workers.run.warming import Warming
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.state.ending import end_for_spares
from bundlerun.workers.sync.schemes import ways_of

log = logging.getLogger(__name__)

SPARE_CODES: Mapping[End, int] = {
    "lost": EXIT_DONE,
    "safe": EXIT_DONE,
    "stopped": EXIT_RESUMABLE,
    "unsaved": EXIT_RESUMABLE,
    "failed": EXIT_FAILED,
}

# Loaded with this module, not by each rank: bundlerun forks the ranks from a process that has it.
for _name in BUILT_IN.values():
    importlib.import_module(_name)


def preflight(config: TrainConfig) -> None:
    """Raises BundleError for what can be known to fail before any rank meets another."""
    check_inputs(config)
    check_stages(config, load_recipe(config))


def costs(config: TrainConfig) -> list[str]:
    """What `bundlerun plan --costs` says of the stages; opens the data.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    with _recipe_apart(config) as recipe:
        return foreseen_division(config, recipe)


def cuts(config: TrainConfig, *, as_json: bool) -> str:
    """What `bundlerun cuts` prints; opens the data.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    with _recipe_apart(config) as recipe:
        return cut_table(config, recipe, as_json=as_json)


def cut_names(config: TrainConfig) -> tuple[str, ...]:
    """Where a configuration cuts its model, by the first names of the places; opens the data.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    with _recipe_apart(config) as recipe:
        return names_of_cuts(config, recipe)


def profiled(config: TrainConfig, wanted: ProfileRequest | Sequence[int] = ()) -> Profile:
    """What the pieces of the model cost; opens the data.

    Args:
        config: of the run.
        wanted: sizes of micro-batches, device and threads; or the sizes alone.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    how = wanted if isinstance(wanted, ProfileRequest) else ProfileRequest(sizes=tuple(wanted))
    with _recipe_apart(config) as recipe:
        return profile_of(config, recipe, how)


@contextmanager
def _recipe_apart(config: TrainConfig) -> Iterator[Recipe]:
    """The recipe, of which nothing stays in the run folder, such as lists of images."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(replace(config, run_dir=folder))
        recipe.check()
        yield recipe


def warm_up(argv: Sequence[str], local_rank: int, num_ranks: int, wait: Callable[[], int]) -> bool:
    """Makes this process ready to become a rank at once; see `launcher.ranks.standby.WarmUp`."""
    name = os.environ.get("BUNDLERUN_NODE_NAME", "")
    config = read_train_argv(argv, os.environ).value
    return Warming(config, local_rank, num_ranks, name).run(wait)


def check_inputs(config: TrainConfig) -> None:
    """The quick part of `preflight`: torch, the run folder, the data."""
    check_torch()
    check_writable(Path(config.run_dir), "--run-dir")
    recipe = load_recipe(config)
    Declared.of(recipe)
    recipe.check()


def train(
    config: TrainConfig,
    env: RankEnv,
    store: Store,
    life: Liveness | None = None,
    claim: AbstractContextManager[None] | None = None,
    start: DeviceStart | None = None,
) -> int:
    """Joins the round and trains to the end, or until the run is told to stop.

    Args:
        config: the same on every rank.
        env: what the agent told this rank.
        store: where the ranks of this round meet; fresh.
        life: what the agent sees of this rank; None: nobody looks.
        claim: holds the run folder, once it is known that the ranks fit together.
        start: of this rank's device, under way; None: it has not begun.

    Returns:
        The exit code: done, stopped and resumable, or failed, as the last state is lost.

    Raises:
        BundleError: what the user can act on.
    """
    life = life or Liveness.none()
    asked = config
    # An error ends the process inside `life`: unwinding would wait for ranks that are gone.
    with ExitStack() as held, ExitStack() as made, life:
        arrival = arrive(config, env, store, start, life.sheet)
        if claim is not None:
            held.enter_context(claim)
        # An option of 0 lets the run choose; from here on it is the number chosen.
        is_by_default = not config.microbatch_size
        has_choice = bool(config.shape.others)
        if has_choice:
            config = config.in_shape(arrival.topology.shape, arrival.cut)
        config = replace(config, microbatch_size=arrival.samples_per_microbatch)
        # Else the launcher has said it.
        if arrival.is_speaker and arrival.topology.num_bundles != env.planned_bundles:
            for line in idle_by_plan(config, arrival.topology):
                log.warning(line)
        # Spare ranks go no further: they make no groups and no model.
        if arrival.place.is_spare:
            return SPARE_CODES[stand_by(config, arrival, life)]
        session = join(config, arrival, ways_of(config, arrival).members)
        shape = str(arrival.topology.shape)
        met = {"rank": session.place.rank, "log": env.log_folder, "shape": shape}
        life.events.note("met", met)
        if has_choice and session.is_reporter:
            log.info("this round has shape %s", shape)
        joiner = Joiner(session, env, config.timeout_s) if life.joins else None
        mover = Mover(asked, env, session, life)
        passer = joiner.passer if joiner else None
        way = Way(joiner=joiner, mover=mover, passer=passer, number=life.joins)
        is_first, left = env.attempt == 0, session
        while True:
            found = train_rank(
                config,
                session,
                life,
                made,
                is_first_start=is_first,
                may_shrink=is_by_default,
                way=way,
            )
            # Before the end is told: what it closes may still write.
            made.close()
            if not isinstance(found, Moved):
                break
            # Its groups are not closed before all others have left them, too.
            left, session = session, found.session
            env, is_first = found.env, False
            life.events.note("met", {**met, "rank": session.place.rank})
            mover = Mover(asked, env, session, life)
            way = Way(kept=found.kept, mover=mover, passer=found.passer, number=found.number)
        del left
        if isinstance(found, str):
            return SPARE_CODES[found]
        if session.is_reporter:
            end = end_for_spares(found.outcome, found.kept)
            if session.topology.spare_ranks:
                tell_end(session.store, end)
            mover.tell_end(end)
        session.close()
    return found.outcome.exit_code


def idle_by_plan(config: TrainConfig, topology: Topology) -> Iterator[str]:
    """What the user should know of time that nobody uses."""
    batch = Batch(size=config.batch_size, samples=config.samples_per_microbatch)
    return warnings(Pipeline.of(topology, config.schedule), batch, topology.num_bundles)


def stand_by(config: TrainConfig, arrival: Arrival, life: Liveness) -> End:
    """What a spare rank does: lends what its node remembers, and waits for the end."""
    log.info("rank %d is spare: no bundle needs it", arrival.place.rank)
    # It finishes no steps: the agent must not take it for one that hangs (I9).
    life.stands_by()
    life.events.note("spare", {"rank": arrival.place.rank})
    paths = RunPaths(Path(config.run_dir))
    life.when_told_to_stop(partial(request_stop, paths, f"node {arrival.node_name} is to stop"))
    if config.snapshot == "off":
        return wait_for_end(arrival.store)
    restore = Restore(config, arrival, is_reporter=False)
    restore.lend()
    end = wait_for_end(arrival.store)
    # The state is on disk. After any other end the memory may be all there is (I7).
    if end in ("safe", "stopped"):
        restore.room.give_up()
    restore.room.close()
    return end


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank to its end and returns the exit code, as its agent is to see it."""
    logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()], force=True)
    life = Liveness.none()
    with ExitStack() as stack:
        try:
            env = RankEnv.from_mapping(os.environ)
            typed = read_train_argv(sys.argv[1:] if argv is None else argv, os.environ)
            found = with_kept_decision(typed)
            alone_there = env.is_launched and env.world_size == 1
            config = (in_one_stage(found) if alone_there else found).value
            if not env.is_launched:
                ended = stand_before()
                if ended is not None:
                    return ended
            # Only under an agent of bundlerun; torchrun's has no board.
            board = Board.open(os.environ) if env.is_launched else None
            config = with_run_folder(config, env, board.run_dir if board else None)
            raise_open_files()  # where bundlerun's agent has not done so; it tells of a low one
            life = stack.enter_context(life_of(Path(config.run_dir), env, board))
            env = take_cores(config, env)
            prepare(config)
            # After the cores, which its thread inherits; the rest goes on meanwhile.
            start = DeviceStart(env.local_rank)
            config = _checked(config, env)
            store = open_store(env, config.timeout_s)
            code = train(config, env, store, life, claimed_folder(config, env), start)
        except BundleError as exc:
            text = f"error: {exc}"
            with said_once(text, os.environ) as is_first:
                if is_first:
                    log.error("%s", text)
            details = {"text": text, "exit_code": exc.exit_code}
            # Tells the first error from those that follow from it: the first one is the story.
            life.events.note("failed", {**details, "is_follower": is_follower(exc)})
            if isinstance(exc, CorruptionError) and exc.details is not None:
                life.events.note("corruption", exc.details)
            life.ends(exc.verdict)
            return exc.exit_code
        life.ends(code)
        return life.code_for_agent(code)


def _checked(config: TrainConfig, env: RankEnv) -> TrainConfig:
    """What is trained here, which can be."""
    if env.is_launched:
        # A wrong cut ends all ranks alike when they make their stages, which costs no more.
        check_inputs(config)
        return config
    preflight(config)
    if config.shape.size > 1:
        log.info("one process without a launcher: the model is trained unsplit")
        config = config.in_shape(Shape((1,)))
    return config


if __name__ == "__main__":
    leave(record(main)() or EXIT_DONE)
