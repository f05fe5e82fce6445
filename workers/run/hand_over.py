"""A rank goes on in another round, in its process: nobody has failed, a node joins.

    the others' main thread   steps ................................. step s | in the new round
                  a thread    [1] meets, makes the groups, [2] same model?   | [4] passes step s on
    the newcomer  process, [1] meets, makes the groups, data, model, [2]     | [4] takes it
                                            [3] all are ready: agreed by the sums of step s

Each is ready once the groups of the new round are there and the newcomer has its model, and all
that goes with it. That rides along with the small sums of a step, as a request to stop does, so all
leave after the same one. Of the old round its ranks keep process, data, loader, the modules of
their stage, the optimizer, snapshots and the history; they begin the next step at once. The
newcomer has nothing to compute in that one, and takes the state meanwhile (`passing_on`).

Whoever cannot, says so, and its agent asks for a round in which all begin anew. Whoever dies on the
way ends the new round, which is in force since before [1]: the same follows.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import cast

from torch._C._distributed_c10d import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError
from bundlerun.launcher.ranks.board import NextRound
from bundlerun.launcher.run_folder.checkpoints import Progress, Survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.shared import shared_parameters
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.same_data import check_same_data
from bundlerun.workers.rank.arrival.open_store import reach_store
from bundlerun.workers.rank.arrival.seat import take_seat
from bundlerun.workers.rank.arrival.session import End, Session, join, meet
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.recipe import DataInfo, DataSets, Recipe
from bundlerun.workers.report.reporter import Reporter
from bundlerun.workers.run.keeper import Found, Resumed
from bundlerun.workers.run.passing_on import Passer
from bundlerun.workers.run.same_model import check_same_model
from bundlerun.workers.snapshot.piece import SnapshotId
from bundlerun.workers.snapshot.restore import Restore
from bundlerun.workers.snapshot.snapshots import Snapshots
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.trainer import Held

log = logging.getLogger(__name__)

_BEFORE = "before"
"""How many ranks the round before has."""
_BEGINS = "begins"
"""The run begins in this round, or is over in the one before."""
_LONGEST_WAIT = timedelta(days=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a rank keeps of its round.

    Args:
        recipe: of the run.
        info: sizes of the data.
        data: the samples, on stage 0.
        feed: with the loader.
        held: this rank's part of the model, and what steps change besides.
        found: what the whole model has; see `same_model.described`.
        cuts: names at which it was cut.
        restore: knows where snapshots are.
        snapshots: the last of which may be under way.
        reporter: on one rank of all.
        start: what its round began with.
        token: of its round.
        progress: how far the run has come; None: it goes on in this round.
    """

    recipe: Recipe
    info: DataInfo
    data: DataSets | None
    feed: Feed
    held: Held
    found: Mapping[str, str]
    cuts: tuple[str, ...]
    restore: Restore
    snapshots: Snapshots
    reporter: Reporter | None
    start: Found
    token: str
    progress: Progress | None = None

    def resumed(self) -> Resumed:
        """Where the run goes on in the other round."""
        assert self.progress is not None
        which = SnapshotId(self.progress.step, self.token)
        return Resumed(progress=self.progress, snapshot=which)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A rank has left its round, to go on in another.

    Args:
        session: its part in that.
        env: what its agent would have told it there.
        number: of the other one.
        kept: what it has.
        passer: passes on what joins it.
    """

    session: Session
    env: RankEnv
    number: int
    kept: Kept
    passer: Passer


class Mover:
    """Brings a rank into the next round beside its steps, once the agent tells of one.

    Args:
        config: of the run, as it was asked for.
        env: of this rank in its round.
        session: its part in that.
        life: where the agent tells of another round, and is told.
    """

    def __init__(self, config: TrainConfig, env: RankEnv, session: Session, life: Liveness) -> None:
        self._config = config
        self._env = env
        self._session = session
        self._life = life
        self._kept: Kept | None = None
        self._passer: Passer | None = None
        self._store: Store | None = None
        self._next: Session | None = None
        self._next_env: RankEnv | None = None
        self._is_ready = False
        self._is_over = False
        self._number = 0

    def watch(self, kept: Kept) -> None:
        """Begins to look for another round.

        Args:
            kept: what this rank would go on with there.
        """
        self._kept = kept
        config = self._config
        # Nobody leaves at an epoch's end. A stage's piece has to have all that it loads, and what
        # an exchange keeps back belongs to the sums of this round.
        is_able = (
            kept.feed.steps_per_epoch > 1
            and not shared_parameters(kept.held.stage)
            and config.exchange_form.is_exact
            and not config.overlap_forward
        )
        if is_able and self._session.arrival.network.backend == "gloo":
            self._life.when_next_round(self._begin)

    def is_ready(self) -> bool:
        """Whether this rank may leave its round after any step."""
        return self._is_ready and not self._is_over

    def leave(self, progress: Progress) -> Moved:
        """The rank has left its round; its snapshot of the last step is there, or under way.

        Args:
            progress: how far the run has come.
        """
        assert self._kept is not None
        assert self._passer is not None
        assert self._next is not None
        assert self._next_env is not None
        assert self._store is not None
        arrival = self._next.arrival
        take_seat(
            self._life.sheet,
            arrival.place,
            world_size=arrival.topology.world_size,
            limit_s=self._config.timeout_s,
            token=arrival.token,
        )
        if self._session.is_reporter:
            start = self._kept.start
            self._store.set(_BEGINS, json.dumps([progress.step, start.era, start.trusted]))
        return Moved(
            session=self._next,
            env=self._next_env,
            number=self._number,
            kept=replace(self._kept, progress=progress),
            passer=self._passer,
        )

    def give_up(self, why: str) -> None:
        """The rank stays where it is until its agent begins anew."""
        self._is_over = True
        self._life.cannot_move(why)

    def tell_end(self, end: End) -> None:
        """The run is over before anybody has left; lets those who joined end; by one rank."""
        self._is_over = True
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(_BEGINS, json.dumps(end))

    # --- in a thread

    def _begin(self, told: NextRound) -> None:
        threading.Thread(
            target=self._run, args=(told,), name="bundlerun-next-round", daemon=True
        ).start()

    def _run(self, told: NextRound) -> None:
        try:
            self._prepare(told)
        except Exception as exc:  # whatever it is: nobody else would hear of it
            self._is_over = True
            self._life.cannot_move(str(exc).splitlines()[0] if str(exc) else type(exc).__name__)

    def _prepare(self, told: NextRound) -> None:
        env = replace(
            self._env,
            rank=told.first_rank + self._env.local_rank,
            world_size=told.world_size,
            node=told.node,
            num_nodes=told.num_nodes,
            master_addr=told.host,
            master_port=told.port,
        )
        config, kept = self._config, self._kept
        assert kept is not None
        self._store = reach_store(env, config.timeout_s)
        before = self._session.topology.world_size
        if self._session.is_reporter:
            self._store.set(_BEFORE, str(before))
            kept.restore.tell_run(self._store)
        # [1] The sheet says meanwhile what this rank does in its own round.
        sheet = self._life.sheet
        arrival = meet(config, env, self._store, self._session.device, sheet, enters=False)
        place, own = arrival.place, self._session.place
        if (place.bundle, place.stage, place.replica) != (own.bundle, own.stage, own.replica):
            raise RuntimeError(f"this rank would do another part there: {place} after {own}")
        config = replace(config, microbatch_size=arrival.samples_per_microbatch)
        session = join(config, arrival, ways_of(config, arrival).members)
        passer = Passer(session, before)
        paths = RunPaths(Path(config.run_dir))
        check_same_data(kept.info, kept.data, session, kept.feed, paths, is_new=False)
        # [2] Without the store's time-out: a model may take long to make.
        keys = [_prepared(rank) for rank in range(before, arrival.topology.world_size)]
        # A connection of its own: who waits holds it.
        reach_store(env, config.timeout_s).wait(keys, _LONGEST_WAIT)
        check_same_model(session, kept.found)
        self._next, self._next_env, self._number = session, env, told.number
        self._passer = passer
        self._is_ready = True


class Joiner:
    """A rank whose round others go on in: it prepares beside them.

    Args:
        session: its part in the round.
        env: of this rank.
        timeout_s: for the store.
    """

    def __init__(self, session: Session, env: RankEnv, timeout_s: float) -> None:
        self._session = session
        self._env = env
        self._timeout_s = timeout_s
        self.passer = Passer(session, int(session.store.get(_BEFORE)))

    def has_prepared(self) -> None:
        """It has made its part of the model, and what goes with it."""
        self._session.store.set(_prepared(self._session.place.rank), "")

    def wait(self) -> Found | End:
        """Waits for the others to come; what they go on from, or how the run ended without them."""
        try:
            # A connection of its own: who waits holds it.
            store = reach_store(self._env, self._timeout_s)
            store.wait([_BEGINS], _LONGEST_WAIT)
            told = json.loads(store.get(_BEGINS))
        except (RuntimeError, BundleError):
            return "lost"
        if isinstance(told, str):
            return cast(End, told)
        step, era, trusted = told
        return Found(on_disk=Survey([], {}), in_memory=step, era=era, trusted=trusted)


def _prepared(rank: int) -> str:
    return f"prepared/{rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a rank has come into its round, and how it may leave it.

    Args:
        kept: what it has from the round before, whose process it was; None: it begins.
        joiner: of a rank that prepares beside others; None: it comes with them.
        mover: may take it into another round; None: it stays in this one.
        passer: where ranks join others: its part in passing the state on.
        number: of its round, where it has not begun with all others.
    """

    kept: Kept | None = None
    joiner: Joiner | None = None
    mover: Mover | None = None
    passer: Passer | None = None
    number: int = 0
