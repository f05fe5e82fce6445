"""A run of one process that nobody has launched: it is its own agent."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.signals import NOT_HEARD, StopSignals, exit_now
from bundlerun.launcher.run_folder.events import Events
from bundlerun.workers.rank.liveness import Liveness

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
