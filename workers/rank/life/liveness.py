"""A rank's signs of life, and its end: it never outlives its agent, and never waits to die.

    thread        [1] every BEAT_S             row of the board, which the agent's watch reads
                  [2] agent gone               the process ends
                  [3] SIGTERM (the agent ends  the process ends, once a copy of the state that is
                      this start of it)        under way is whole; not if the agent got it, too
    main thread   [4] an exception             reported, then the process ends: nothing is unwound,
                                               as that would wait for ranks that are gone

The thread hears a signal from a pipe that the interpreter's own handler writes to, because the main
thread may be inside a collective, where it would never come to handle one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, BundleError
from bundlerun.launcher.process import agent_pid, follow_parent
from bundlerun.launcher.ranks.board import AFTERMATH_S, Board, Moves, NextRound, Row
from bundlerun.launcher.ranks.fault import fault_of, is_follower
from bundlerun.launcher.ranks.rank_signals import AgentsWord
from bundlerun.launcher.ranks.standby import TAKEN_VARIABLE
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.why.sheet import Sheet
from bundlerun.workers.rank.life.standing import Standing

log = logging.getLogger(__name__)

BEAT_S = 0.25
LAST_COPY_S = 1.0
"""How long a rank that is to end waits for a copy of the state that is under way, seconds."""


class Liveness:
    """What the agent sees of a rank.

    Args:
        board: the agent's; None where there is no agent, or one that keeps none.
        events: of this node.
        local_rank: whose row it is.
        is_launched: whether an agent has started this process, and decides about its end.
    """

    def __init__(
        self, board: Board | None, events: Events, local_rank: int, *, is_launched: bool
    ) -> None:
        self.events = events
        self.is_launched = is_launched
        self._board = board
        self._row: Row | None = None if board is None else board.row(local_rank)
        self._word = AgentsWord.of_rank(board, os.environ)
        self._agent_fd = -1
        self._signals = -1
        self._num_steps = 0
        self._has_agreed = False
        self._before_end: Callable[[float], None] = lambda _: None
        self._on_stop: Callable[[], None] | None = None
        self._on_next: Callable[[NextRound], None] | None = None
        self._has_told_failure = False
        sheet = None if board is None else board.sheet(local_rank)
        self.sheet = sheet or Sheet.private()
        """What this rank does right now."""
        self._standing = Standing(self.sheet, events.node, local_rank)
        if is_launched:
            self._begin()

    @classmethod
    def none(cls) -> Liveness:
        """For ranks that nobody watches."""
        return cls(None, Events(None, ""), 0, is_launched=False)

    def _begin(self) -> None:
        if self._row is not None:
            self._row.enter(os.getpid(), time.monotonic_ns())
        if self._board is not None:
            self._follow(self._board.agent_pid)
        elif "TORCHELASTIC_RUN_ID" in os.environ:  # torch's own rendezvous; another launcher's
            self._follow(agent_pid())  # ranks may have a parent that ends on purpose
        self.sheet.clear()
        self._standing.answer_signals()
        signals_r, signals_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals = signals_r
        if threading.current_thread() is threading.main_thread():
            self._hear(signals_w)
        threading.Thread(target=self._run, name="bundlerun-liveness", daemon=True).start()

    def _hear(self, signals_w: int) -> None:
        # Handlers in Python would wait for the main thread. Empty ones are set all the same: only
        # signals that have one are written to the pipe.
        signal.set_wakeup_fd(signals_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: None)  # torchrun ends its ranks by that, too
        if self._board is not None:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the agent's

    def _follow(self, agent: int) -> None:
        """Makes this process end with its agent, whatever processes are between the two."""
        with suppress(OSError):
            self._agent_fd = os.pidfd_open(agent)
        if os.getppid() == agent:
            # A rank that is stopped, or has no interpreter to spare, ends as well.
            follow_parent()
        # It may have ended before any of this was set up.
        if self._agent_fd < 0 and not Path(f"/proc/{agent}").exists():
            os._exit(128 + signal.SIGKILL)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._agent_fd >= 0:
            poll.register(self._agent_fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(1000 * BEAT_S)]
            # [2] A descriptor of a process is readable once that has ended.
            if self._agent_fd in ready:
                self.end_now(128 + signal.SIGKILL)
            # [3]
            if self._signals in ready:
                self._obey(os.read(self._signals, 64))
            # [1]
            if self._row is not None:
                self._row.beat(time.monotonic_ns())
            self._standing.look()
            if self._on_stop is not None and self.is_told_to_stop:
                self._try(self._on_stop)
            if self._on_next is not None and self._has_next():
                assert self._board is not None
                act, self._on_next = self._on_next, None
                act(self._board.next)

    def _has_next(self) -> bool:
        """Whether the agent tells of a round that this rank is not in; the last one told stays."""
        if self._board is None or self._row is None:
            return False
        return self._board.next_number not in (0, self._row.round)

    def _try(self, act: Callable[[], None]) -> None:
        """Does what a stop asks for; where a folder takes no file, again at the next beat."""
        try:
            act()
        except OSError as exc:
            if not self._has_told_failure:
                log.warning("cannot pass on that the run is to stop: %s; trying again", exc)
            self._has_told_failure = True
            return
        self._on_stop = None

    def _obey(self, heard: bytes) -> None:
        if signal.SIGINT in heard:
            self.end_now(128 + signal.SIGINT)
        if signal.SIGTERM in heard and self._word.must_end():
            self.end_now(128 + signal.SIGTERM)

    @property
    def num_finished(self) -> int:
        """Steps that this start has finished."""
        return self._num_steps

    @property
    def is_told_to_stop(self) -> bool:
        """Whether this node asks the run to stop in good order, or all have agreed to."""
        return self._board is not None and self._board.is_told_to_stop

    def agree_to_stop(self) -> None:
        """All ranks stop after this step, and their next start would, too."""
        self._has_agreed = True
        if self._board is not None:
            self._board.agree_to_stop()

    def when_told_to_stop(self, act: Callable[[], None]) -> None:
        """Has `act` called once this node asks the run to stop; for ranks that do no steps."""
        self._on_stop = act

    @property
    def joins(self) -> int:
        """The number of this round, where other ranks go on in it in their processes; else 0."""
        return 0 if self._board is None else self._board.joins

    def when_next_round(self, act: Callable[[NextRound], None]) -> None:
        """Has `act` called once the agent tells of a round that this rank is to go on in."""
        if self._row is not None:
            self._on_next = act
            self._row.moves = Moves.CAN

    def cannot_move(self, why: str) -> None:
        """Tells the agent that this rank cannot go on in the next round in its process."""
        self.events.note("cannot hand over", {"why": why})
        if self._row is not None:
            self._row.moves = Moves.CANNOT

    def has_moved(self, number: int) -> None:
        """Tells that this rank is in the round now that it went on in, or joined."""
        if self._row is not None:
            self._row.round = number

    def tell_run_dir(self, run_dir: Path) -> None:
        """Lets the agent know where the run folder is; torchrun's agent is not told."""
        self._standing.tell_run_dir(run_dir.absolute())
        if self._board is not None:
            self._board.run_dir = str(run_dir.absolute())

    def before_end(self, act: Callable[[float], None]) -> None:
        """Has `act` called with a time limit, seconds, when this process is about to be ended."""
        self._before_end = act

    def begins_at(self, step: int) -> None:
        """Tells how many steps of the run were finished when this start of it began."""
        if self._row is not None:
            self._row.begin_at(step)
        self.sheet.finish(step)

    def stands_by(self) -> None:
        """Tells that no bundle needs this rank."""
        if self._row is not None:
            self._row.stand_by()

    def finished(self, step: int) -> None:
        """Tells that a step is finished, and that the run has `step` of them."""
        if self._row is not None:
            self._row.finish(step)
        self.sheet.finish(step)
        self._num_steps += 1
        if self._num_steps == 1:
            self.events.note("first step", {"step": step})

    def ends(self, exit_code: int) -> None:
        """Tells that the process is about to end, as intended, with `exit_code`."""
        if self._row is not None:
            self._row.end(exit_code)

    def code_for_agent(self, code: int) -> int:
        """The exit code of this process when its run is over.

        bundlerun's agent reads `code` from the board, and would start a process again that ends
        with another code than 0. So would torchrun's, for a run that was told to stop.
        """
        if not self.is_launched:
            return code
        is_bundleruns = self._is_bundleruns
        is_as_asked = code == EXIT_RESUMABLE and self._has_agreed
        return EXIT_DONE if is_bundleruns or is_as_asked else code

    @property
    def _is_bundleruns(self) -> bool:
        """Whether bundlerun's agent has forked it, and not a program of the user (mp.spawn)."""
        return self._row is not None and multiprocessing.parent_process() is not None

    def end_now(self, exit_code: int) -> None:
        """Ends the process, save for a copy of the state that is under way; never returns."""
        with suppress(Exception):
            self._standing.end()
        with suppress(Exception):
            self._before_end(LAST_COPY_S)
        self.ends(exit_code)
        os._exit(exit_code)

    def __enter__(self) -> Liveness:
        """An unexpected exception inside ends the process instead of unwinding the stack."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Ends the process if the error has no message for users, that is, is no `BundleError`."""
        if not self.is_launched or not isinstance(error, Exception):
            return
        with suppress(Exception):
            self._standing.end()
        if isinstance(error, BundleError):
            return
        # [4] The agent first, which decides by it; then torch's file, the history and the console.
        if self._row is not None:
            self._row.fail(fault_of(error, self._row.step))
        get_error_handler().record_exception(error)
        text = "".join(traceback.format_exception(error))
        self.events.note(
            "failed",
            {"text": text, "exit_code": EXIT_FAILED, "is_follower": is_follower(error)},
        )
        if not self._is_bundleruns:  # bundlerun tells the first failure itself
            sys.stderr.write(text)
        sys.stderr.flush()
        sys.stdout.flush()
        with suppress(Exception):
            self._before_end(LAST_COPY_S)
        time.sleep(AFTERMATH_S)
        self.ends(EXIT_FAILED)
        os._exit(EXIT_FAILED)


def process_age_s() -> float:
    """Seconds since this process was made, or became a rank if it was a standby before."""
    taken_s = os.environ.get(TAKEN_VARIABLE)
    if taken_s is not None:
        return time.monotonic() - float(taken_s)
    # The name of a program, in brackets, may hold spaces; field 22 is the start, in clock ticks.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.monotonic() - int(fields[19]) / os.sysconf("SC_CLK_TCK")
