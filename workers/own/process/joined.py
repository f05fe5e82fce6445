"""How a process of a user's own becomes a rank: under torchrun, another launcher, or none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

from bundlerun.launcher.agreement.agreed import Terms, terms_of_script
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, ConfigError
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.fault import is_follower
from bundlerun.workers.own.process.told_errors import tell_errors
from bundlerun.workers.own.process.user_group import group_variables
from bundlerun.workers.rank.arrival.open_store import open_store
from bundlerun.workers.rank.arrival.round_store import own_part
from bundlerun.workers.rank.arrival.session import Session, arrive, join, meet
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.alone import life_of
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.rank.run_start import claimed_folder, with_run_folder
from bundlerun.workers.sync.schemes import ways_of

FOLDER_VARIABLE = "BUNDLERUN_RUN_DIR"
"""The run folder, where the script does not say; under `bundlerun script` its agent says."""

_OPEN: set[str] = set()
"""Folders of the loops that are open: a fact of the process, which its claim cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What this process is as a rank: who is here, and what its agent sees of it."""

    config: TrainConfig
    env: RankEnv
    session: Session
    life: Liveness
    has_board: bool
    """Whether its agent is one of bundlerun."""


def read_env() -> RankEnv:
    """What the launcher has told this process, or the process group that its program has made.

    Collective where there is such a group: all of its ranks.

    Raises:
        ConfigError: a variable is missing or no number; or both say different things.
    """
    tell_errors()
    return RankEnv.from_mapping({**os.environ, **group_variables(os.environ)})


def joined(config: TrainConfig, env: RankEnv, device: torch.device, held: ExitStack) -> Joined:
    """Meets the other ranks; `held` has what ends with the loop.

    Collective: every rank of the job.

    Raises:
        BundleError: what the user can act on.
    """
    board = Board.open(os.environ) if env.is_launched else None
    config = with_run_folder(config, env, board.run_dir if board else None)
    held.enter_context(_only_here(config.run_dir))
    env = replace(env, terms=env.terms or json.dumps(_terms()))
    life = held.enter_context(life_of(Path(config.run_dir), env, board))
    # An error inside ends the process: unwinding would wait for ranks that are gone.
    with life, told(life):
        store = _store(env, config.timeout_s)
        arrival = meet(config, env, store, device)
        held.enter_context(claimed_folder(config, env, json.loads(env.terms), _how()))
        session = join(config, arrival, ())
    life.events.note("met", {"rank": session.place.rank, "log": env.log_folder})
    return Joined(config=config, env=env, session=session, life=life, has_board=board is not None)


@contextmanager
def _only_here(run_dir: str) -> Iterator[None]:
    """Has the folder for one open loop of this process.

    Raises:
        ConfigError: another one is open.
    """
    folder = str(Path(run_dir).absolute())
    if folder in _OPEN:
        raise ConfigError(
            f"run folder {run_dir!r} is that of a loop which is open in this process; end its "
            "`with` before, or give each a run_dir of its own"
        )
    _OPEN.add(folder)
    try:
        yield
    finally:
        _OPEN.discard(folder)


def as_rank(config: TrainConfig, env: RankEnv) -> Session:
    """A rank of bundles, which this process becomes; no run folder is claimed.

    Collective: every rank of the job.

    Raises:
        BundleError: what the user can act on.
    """
    env = replace(env, terms=env.terms or json.dumps(_terms()))
    arrival = arrive(config, env, _store(env, config.timeout_s))
    return join(config, arrival, ways_of(config, arrival).members)


@contextmanager
def told(life: Liveness) -> Iterator[None]:
    """Tells the agent and the history of an error inside that a message explains."""
    try:
        yield
    except BundleError as exc:
        details = {"text": f"error: {exc}", "exit_code": exc.exit_code}
        life.events.note("failed", {**details, "is_follower": is_follower(exc)})
        life.ends(exc.verdict)
        raise


def _terms() -> Terms:
    """What all nodes have to have alike: the program, its arguments, versions."""
    return terms_of_script(Path(sys.argv[0] or "-"), sys.argv[1:])


def _how() -> str:
    """How this program was started, for whoever finds its claim."""
    return f"python {Path(sys.argv[0]).name}".strip()


def _store(env: RankEnv, timeout_s: float) -> Store:
    """Where the ranks of this start meet, this time: a program may do so again and again.

    A process group that the user has made has a store already; without an agent's, there can be no
    second one at the same address.
    """
    if env.is_launched and dist.is_initialized() and not env.has_agents_store:
        store = own_part(distributed_c10d._get_default_store(), env, timeout_s)
    else:
        store = open_store(env, timeout_s)
    # All ranks come here equally often; keys of the time before would be taken for answers.
    return PrefixStore(f"own{store.add(f'entered/{env.rank}', 1)}", store)
