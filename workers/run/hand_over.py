"""A rank goes on in another round, in its process: nobody has failed, a node joins.

    the others' main thread   steps ................................. step s | in the new round
                  a thread    [1] meets, makes the groups, [2] same model?   |
    the newcomer  process, [1] meets, makes the groups, data, model, [2]     | [4] fetches step s
                                            [3] all are ready: agreed by the sums of step s

Each is ready once the groups of the new round are there and the newcomer has its model. That rides
along with the small sums of a step, as a request to stop does, so all leave after the same one. The
state of that step is kept in the memory of the nodes, due or not, and the new round begins with it,
as after a restart; of the old one its ranks keep process, data and the modules of their stage.

Whoever cannot, says so, and its agent asks for a round in which all begin anew. Whoever dies on the
way ends the new round, which is in force since before [1]: the same follows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

from torch import nn
from torch._C._distributed_c10d import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError
from bundlerun.launcher.ranks.board import NextRound
from bundlerun.workers.rank.arrival.open_store import reach_store
from bundlerun.workers.rank.arrival.seat import take_seat
from bundlerun.workers.rank.arrival.session import End, Session, join, meet
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.recipe import DataInfo, DataSets, Recipe
from bundlerun.workers.run.keeper import Resumed
from bundlerun.workers.run.same_model import check_same_model
from bundlerun.workers.sync.schemes import ways_of

log = logging.getLogger(__name__)

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
        stage: this rank's part of the model.
        found: what the whole model has; see `same_model.described`.
        cuts: names at which it was cut.
        step: the last step that is finished.
    """

    recipe: Recipe
    info: DataInfo
    data: DataSets | None
    stage: nn.Module
    found: Mapping[str, str]
    cuts: tuple[str, ...]
    step: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A rank has left its round, to go on in another.

    Args:
        session: its part in that.
        env: what its agent would have told it there.
        number: of the other one.
        kept: what it has.
    """

    session: Session
    env: RankEnv
    number: int
    kept: Kept


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
        self._found: Mapping[str, str] = {}
        self._store: Store | None = None
        self._next: Session | None = None
        self._next_env: RankEnv | None = None
        self._is_ready = False
        self._is_over = False
        self._number = 0

    def watch(self, found: Mapping[str, str], *, keeps_snapshots: bool) -> None:
        """Begins to look for another round.

        Args:
            found: the whole model; see `same_model.described`.
            keeps_snapshots: whether the memory of the nodes has the state.
        """
        self._found = found
        if keeps_snapshots and self._session.arrival.network.backend == "gloo":
            self._life.when_next_round(self._begin)

    def is_ready(self) -> bool:
        """Whether this rank may leave its round after any step."""
        return self._is_ready and not self._is_over

    def leave(self, kept: Kept) -> Moved:
        """The rank has left its round; the state of its last step is kept in the nodes' memory."""
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
            self._store.set(_BEGINS, "")
        return Moved(session=self._next, env=self._next_env, number=self._number, kept=kept)

    def give_up(self, why: str) -> None:
        """The rank stays where it is until its agent begins anew."""
        self._is_over = True
        self._life.cannot_move(why)

    def tell_end(self, end: End) -> None:
        """The run is over before anybody has left; lets those who joined end; by one rank."""
        self._is_over = True
        if self._store is not None:
            with suppress(RuntimeError):
                self._store.set(_BEGINS, end)

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
        config = self._config
        self._store = reach_store(env, config.timeout_s)
        # [1] The sheet says meanwhile what this rank does in its own round.
        sheet = self._life.sheet
        arrival = meet(config, env, self._store, self._session.device, sheet, enters=False)
        place, own = arrival.place, self._session.place
        if (place.bundle, place.stage, place.replica) != (own.bundle, own.stage, own.replica):
            raise RuntimeError(f"this rank would do another part there: {place} after {own}")
        config = replace(config, microbatch_size=arrival.samples_per_microbatch)
        session = join(config, arrival, ways_of(config, arrival).members)
        # [2] Without the store's time-out: a model may take long to make.
        before = self._session.topology.world_size
        keys = [_prepared(rank) for rank in range(before, arrival.topology.world_size)]
        # A connection of its own: who waits holds it.
        reach_store(env, config.timeout_s).wait(keys, _LONGEST_WAIT)
        check_same_model(session, self._found)
        self._next, self._next_env, self._number = session, env, told.number
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

    def has_prepared(self) -> None:
        """It has made its part of the model."""
        self._session.store.set(_prepared(self._session.place.rank), "")

    def wait(self) -> End | None:
        """Waits for the others to come; how the run has ended without them, else None."""
        try:
            # A connection of its own: who waits holds it.
            store = reach_store(self._env, self._timeout_s)
            store.wait([_BEGINS], _LONGEST_WAIT)
            end = store.get(_BEGINS).decode()
        except (RuntimeError, BundleError):
            return "lost"
        return cast(End, end) if end else None


def _prepared(rank: int) -> str:
    return f"prepared/{rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a rank has come into its round, and how it may leave it.

    Args:
        kept: what it has from the round before, whose process it was; None: it begins.
        joiner: of a rank that prepares beside others; None: it comes with them.
        mover: may take it into another round; None: it stays in this one.
        number: of its round, where it has not begun with all others.
    """

    kept: Kept | None = None
    joiner: Joiner | None = None
    mover: Mover | None = None
    number: int = 0

    def check(self, resumed: Resumed | None) -> None:
        """Raises RuntimeError where the round does not go on with what the one before has left."""
        if self.kept is None and self.joiner is None:
            return
        if resumed is None or resumed.snapshot is None:
            raise RuntimeError("the round before has left no state in memory")
        if self.kept is not None and resumed.progress.step != self.kept.step:
            raise RuntimeError(
                f"step {resumed.progress.step} was found in memory, after step {self.kept.step}"
            )
