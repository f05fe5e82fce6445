"""What an agent knows of the ranks that it starts: their page, who watches it, what it tells."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.process import boot_id
from bundlerun.launcher.ranks.board import (
    BOARD_VARIABLE,
    Board,
    Moves,
    NextRound,
    agents_board,
    own_board,
)
from bundlerun.launcher.ranks.budget import Attempt, Budget, code_of_failed
from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.ranks.fork_server import is_server_gone
from bundlerun.launcher.ranks.onlooker import Onlooker
from bundlerun.launcher.ranks.watch import Watch
from bundlerun.launcher.run_folder.events import Events, read_tail
from bundlerun.launcher.run_folder.outcome import (
    Outcome,
    error_of,
    first_error,
    incidents,
    is_own_error,
    write_outcome,
)
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import forget_request, request_stop

log = logging.getLogger(__name__)


class Ranks:
    """The ranks of this node, over all starts of them.

    Args:
        board: where they have their rows.
        events: this node's event log.
        lease_s: how long one may be stopped before it counts as dead.
        give_up_after: attempts in a row that may finish no new step; 0: any number.
        has_rows: every rank has a row of the board; where not, some programs never do.
    """

    def __init__(
        self,
        board: Board,
        events: Events,
        *,
        lease_s: float,
        give_up_after: int,
        has_rows: bool = False,
    ) -> None:
        self._board = board
        self._has_rows = has_rows
        self._events = events
        self._budget = Budget(most=give_up_after)
        self._watch = Watch(board, events, lease_s=lease_s)
        self._onlooker = Onlooker(board, events.node)
        self._is_running = False
        self._begun_s = 0.0
        self._left_at: float | None = None
        """Since when no steps are done, as the ranks had to leave a round."""
        self._away_s = self._again_at = 0.0
        """How long it took them to end; when the next ones began."""
        self._has_begun_again = False
        self.has_run = False
        """Whether a start of the workers was in a round."""

    @classmethod
    def of_agent(
        cls,
        environ: MutableMapping[str, str],
        events: Events,
        *,
        lease_s: float,
        give_up_after: int,
    ) -> Ranks:
        """For the agent that this process is; its ranks find the board through `environ`."""
        is_ours = own_board(environ) is not None  # made by `bundlerun run`: all ranks have a row
        board = agents_board(environ)
        environ[BOARD_VARIABLE] = board.where
        hear_usr1(board)
        return cls(board, events, lease_s=lease_s, give_up_after=give_up_after, has_rows=is_ours)

    @property
    def is_told_to_stop(self) -> bool:
        """Whether this node is to stop in good order."""
        return self._board.is_told_to_stop

    @property
    def have_stopped(self) -> bool:
        """Whether a rank of the last start has ended in good order with steps left to do."""
        return any(row.exit_code == EXIT_RESUMABLE for _, row in self._board.rows())

    def pass_on_stop(self) -> None:
        """A node that is told to stop goes without a round to do so in: the run is to stop, too."""
        if self._board.run_dir:
            with suppress(OSError):  # it goes all the same; who told it may tell another
                request_stop(RunPaths(Path(self._board.run_dir)), "a node was told to stop")

    def begin(self, *, joins: int = 0) -> None:
        """A new start of the workers is about to come.

        Args:
            joins: the number of its round, where others go on in it in their processes.
        """
        self._board.clear_rows()
        self._board.joins = joins
        self._is_running = self.has_run = self._has_begun_again = True
        self._again_at = time.monotonic()
        self._begun_s = round(time.monotonic(), 4)  # as events have it: none is dated before

    def go_on_in(self, told: NextRound) -> bool:
        """Tells the ranks of the round that they go on in; False where one is not able to."""
        rows = [row for _, row in self._board.rows()]
        if not rows or any(row.moves is not Moves.CAN for row in rows):
            return False
        self._board.next = told
        return True

    def are_in(self, number: int, count: int) -> bool:
        """Whether all `count` ranks are in the round now that they went on in, or joined."""
        rounds = [row.round for _, row in self._board.rows()]
        return len(rounds) >= count and all(each == number for each in rounds)

    def pause_s(self) -> float:
        """Seconds without a step of the ranks, the last time that they came into another round.

        Without the wait for the round itself, which may be one for a node that is lost. 0 as long
        as they do no steps yet, or where it was told before.
        """
        # What the rows say before the next start is of the last one.
        is_over = self._has_begun_again and any(row.steps > 0 for _, row in self._board.rows())
        if self._left_at is None or not is_over:
            return 0.0
        self._left_at = None
        return self._away_s + time.monotonic() - self._again_at

    @property
    def cannot_go_on(self) -> bool:
        """Whether a rank has found that it cannot come into the next round in its process."""
        return any(row.moves is Moves.CANNOT for _, row in self._board.rows())

    def end_start(self) -> None:
        """The ranks are to leave their round."""
        self._leave()
        self._board.end_start()

    def _leave(self) -> None:
        """From now on no steps are done; said again, since it was said first."""
        if self._left_at is None:
            self._left_at, self._has_begun_again = time.monotonic(), False

    def settle(self, *, over: EndCause | None) -> str:
        """Takes in how the last start of the workers ended, all of which have.

        Args:
            over: why they had to leave their round; None where they failed themselves.

        Returns:
            Why there is not to be another one; empty where there is.
        """
        if not self._is_running:
            return ""
        self._is_running = False
        self._leave()
        if self._left_at is not None:
            self._away_s = time.monotonic() - self._left_at
        self._tell_hang()
        if is_server_gone():
            self._events.note("fork server gone", {"why": "it was killed, its ranks with it"})
            log.warning(
                "the process that the ranks are forked from is gone (killed, or out of memory?); "
                "a new one loads torch again, which takes some seconds"
            )
        rows = [row for _, row in self._board.rows()]
        if not rows and not (self._has_rows or self._board.run_dir):
            return ""  # a program that does not say how it fares: torch's own limit holds
        attempt = Attempt(
            num_steps=max((row.steps for row in rows), default=0),
            step=max((row.step for row in rows), default=0),
            exit_codes=tuple(code for row in rows if (code := row.exit_code) is not None),
            faults=tuple(row.fault for row in rows if row.fault.kind),
            is_spare=bool(rows) and all(row.is_spare for row in rows),
            over=over,
        )
        self._budget = self._budget.after(attempt)
        return self._budget.verdict(attempt)

    def _tell_hang(self) -> None:
        """Says why the ranks stood, where they did."""
        text, _ = self._onlooker.verdict()
        if text:
            self._events.note("stood", {"why": text})
            log.error("the run stood: %s; `bundlerun why RUN_DIR` shows all ranks", text)

    def story(self, node_name: str) -> str:
        """What went wrong here in the last start, which is to be followed by another one.

        Empty where nothing did, or where it only follows from what went wrong on another node; a
        rank that has died without a word is told of by the one who watches it.
        """
        if not self.has_run or not self._board.run_dir:
            return ""
        file = RunPaths(Path(self._board.run_dir)).node_events(node_name)
        # The log holds the earlier starts, too.
        rows = [
            row
            for row in read_tail(file)
            if row.get("boot") == boot_id() and row.get("t_s", 0.0) >= self._begun_s
        ]
        own = [row for found in incidents(rows) for row in found if is_own_error(row)]
        if not own:
            return ""
        error = error_of(own[0])
        where = f"local rank {error.local_rank} failed"
        return f"node {node_name}: {where}: {error.last_line}; all ranks start again"

    def failed(self, reason: str) -> None:
        """The run has failed, which is written down where no other node has done so."""
        if not self._board.run_dir:
            return
        paths = RunPaths(Path(self._board.run_dir))
        rows = [row for _, row in self._board.rows()]
        outcome = Outcome(
            state="failed",
            exit_code=code_of_failed(code for row in rows if (code := row.exit_code) is not None),
            reason=reason,
            step=max((row.step for row in rows), default=0),
            first_error=first_error(paths.events),
        )
        write_outcome(paths, outcome, is_last_word=False)
        forget_request(paths)

    def __enter__(self) -> Self:
        self._watch.start()
        self._onlooker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_running:  # no other start follows, before which it would be told
            self._tell_hang()
        self._onlooker.stop()
        self._watch.stop()


def hear_usr1(board: Board) -> None:
    """Has SIGUSR1, which would end this process, ask the run to stop instead."""
    is_main = threading.current_thread() is threading.main_thread()
    # A handler that somebody has set, `bundlerun run` for one, stays.
    if is_main and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, lambda number, _: setattr(board, "stop", number))
