"""Who looks after a rank: its agent; or itself, where nobody has launched it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.signals import NOT_HEARD, StopSignals, exit_now
from bundlerun.launcher.ranks.standby import TAKEN_VARIABLE
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life.liveness import Liveness, process_age_s

log = logging.getLogger(__name__)


@contextmanager
def alone(run_dir: Path) -> Iterator[Liveness]:
    """While inside, a signal stops the run after its step, and a second SIGINT ends it at once."""
    board = Board.create()
    life = Liveness(board, Events(None, ""), 0, is_launched=False)
    life.tell_run_dir(run_dir)
    with StopSignals(board, exit_now, tells_itself=True) as signals:
        if not signals.is_heard:
            log.info(NOT_HEARD)
        yield life


def life_of(run_dir: Path, env: RankEnv, board: Board | None) -> AbstractContextManager[Liveness]:
    """What looks after this rank, from its start on.

    Args:
        run_dir: of the run.
        env: what the agent told this rank.
        board: of the agent; None where there is none, or one of torchrun.
    """
    paths = RunPaths(run_dir)
    if not env.is_launched:
        return alone(paths.root)
    who = {"local_rank": env.local_rank, "attempt": env.attempt}
    events = Events(paths.node_events(env.node_name), env.node_name, who)
    life = Liveness(board, events, env.local_rank, is_launched=True)
    life.tell_run_dir(paths.root)
    was_standby = TAKEN_VARIABLE in os.environ
    events.note(
        "starts",
        {"pid": os.getpid(), "age_s": round(process_age_s(), 3), "was_standby": was_standby},
    )
    return nullcontext(life)
