"""A page of memory that an agent shares with its ranks: how they fare, whether they are to stop.

    agent (bundlerun run, torchrun)                     ranks of this start of the workers
      stop  ----------------------------------------->  read at each step
      agreed  <---------------------------------------  once all ranks stop; outlives their end
      ending  ---------------------------------------->  read at SIGTERM: it is the agent's
      next  ------------------------------------------>  the round that they go on in
      watch, budget, outcome  <-----------------------  a row each: pid, beat, steps, exit code
      why  <------------------------------------------  a sheet each: what it does, seconds

The page has no name in any file system, so nothing is left of it whoever dies, and whenever. Ranks
find it by the variable BUNDLERUN_BOARD, which every way of starting them hands on.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from bundlerun.launcher.ranks.fault import Fault, FaultKind
from bundlerun.launcher.why import sheet
from bundlerun.launcher.why.sheet import Sheet

BOARD_VARIABLE = "BUNDLERUN_BOARD"
NUM_ROWS = 1024
"""Most ranks of a node that have a row; more are not watched."""

AFTERMATH_S = 0.25
"""How long a failed worker stays, seconds: two looks of the agent at its default interval.

Most failures follow another one: a killed rank breaks its peers' connections, and all are gone
before the agent looks. So it sees the killed one first, and ends the others while they wait.
"""

_HEAD = 8
_ROW = 10
_TEXT_BYTES = 4096
_NEXT_BYTES = 1024
_WORDS_BYTES = 8 * (_HEAD + _ROW * NUM_ROWS)
_NEXT_TEXT = _WORDS_BYTES + _TEXT_BYTES
_SHEETS = _NEXT_TEXT + _NEXT_BYTES
_BYTES = _SHEETS + sheet.BYTES * NUM_ROWS
"""The sheets take no memory before a rank writes on its own."""
_STOP, _AGREED, _ENDING, _STARTS, _NEXT, _JOINS = range(6)
_PID, _BEAT, _STEPS, _STEP, _VERDICT, _FAULT, _PLACE, _SPARE, _MOVES, _ROUND = range(_ROW)


class Moves(IntEnum):
    """Whether a rank can go on in another round, in its process: it has not said, yes, no."""

    UNKNOWN = 0
    CAN = 1
    CANNOT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRound:
    """The round that the ranks of this node go on in.

    number: of the round. host, port: of its store. first_rank: of this node. world_size, node,
    num_nodes: as torchrun's variables of a start have them.
    """

    number: int
    host: str
    port: int
    first_rank: int
    world_size: int
    node: int
    num_nodes: int


class Row:
    """What one rank says of itself; whole numbers, each written at once.

    `pid` is 0 where no rank has come yet. `beat_ns`: its last sign of life, monotonic clock.
    `steps`: steps that this start of it has finished; `step`: steps of the run that are finished.
    `verdict`: one more than the exit code of an orderly end, 0 before it. `fault`: what it raised.
    `is_spare`: no bundle needs it. `moves`: whether it can go on in another round in its process;
    `round`: the number of the one that it has gone on in, 0 before.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words

    @property
    def pid(self) -> int:
        """See the class."""
        return int(self._words[_PID])

    @property
    def beat_ns(self) -> int:
        """See the class."""
        return int(self._words[_BEAT])

    @property
    def steps(self) -> int:
        """See the class."""
        return int(self._words[_STEPS])

    @property
    def step(self) -> int:
        """See the class."""
        return int(self._words[_STEP])

    @property
    def exit_code(self) -> int | None:
        """The exit code of an orderly end; None without one."""
        verdict = int(self._words[_VERDICT])
        return verdict - 1 if verdict else None

    @property
    def fault(self) -> Fault:
        """See the class."""
        return Fault(FaultKind(int(self._words[_FAULT])), int(self._words[_PLACE]))

    @property
    def is_spare(self) -> bool:
        """See the class."""
        return bool(self._words[_SPARE])

    @property
    def moves(self) -> Moves:
        """See the class."""
        return Moves(int(self._words[_MOVES]))

    @moves.setter
    def moves(self, how: Moves) -> None:
        self._words[_MOVES] = how

    @property
    def round(self) -> int:
        """See the class."""
        return int(self._words[_ROUND])

    @round.setter
    def round(self, number: int) -> None:
        self._words[_ROUND] = number

    def enter(self, pid: int, now_ns: int) -> None:
        """The rank has come; its row begins again."""
        for index in range(_STEPS, _ROW):
            self._words[index] = 0
        self._words[_BEAT] = now_ns
        # Last: the agent reads a row once it has a process, and then finds it cleared.
        self._words[_PID] = pid

    def beat(self, now_ns: int) -> None:
        """The rank is alive."""
        self._words[_BEAT] = now_ns

    def begin_at(self, step: int) -> None:
        """The rank begins where the run has finished that many steps."""
        self._words[_STEP] = step

    def stand_by(self) -> None:
        """No bundle needs the rank."""
        self._words[_SPARE] = 1

    def fail(self, fault: Fault) -> None:
        """The rank has raised something."""
        self._words[_PLACE] = fault.place
        self._words[_FAULT] = fault.kind

    def finish(self, step: int) -> None:
        """The rank has finished a step, and the run `step` of them."""
        self._words[_STEP] = step
        self._words[_STEPS] += 1

    def end(self, exit_code: int) -> None:
        """The rank is about to end with this code; what it has said before counts more."""
        if not self._words[_VERDICT]:
            self._words[_VERDICT] = exit_code + 1

    def clear(self) -> None:
        """Nobody is here."""
        for index in range(_ROW):
            self._words[index] = 0


class Board:
    """One process's view of the page."""

    def __init__(self, fd: int, where: str) -> None:
        self.where = where
        """How another process of this node opens it."""
        self._memory = mmap.mmap(fd, _BYTES)
        # Words of 64 bits, each written at once, so that agent and ranks need no lock.
        self._words = memoryview(self._memory)[:_WORDS_BYTES].cast("q")

    @classmethod
    def create(cls) -> Board:
        """A page of this process, which keeps it as long as it lives."""
        # Never closed: the ranks open the page by this number in /proc.
        fd = os.memfd_create("bundlerun-board")
        os.ftruncate(fd, _BYTES)
        return cls(fd, f"/proc/{os.getpid()}/fd/{fd}")

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> Board | None:
        """The page that the agent of this rank keeps; None where it keeps none."""
        where = environ.get(BOARD_VARIABLE, "")
        if not where:
            return None
        try:
            fd = os.open(where, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return cls(fd, where)
        except (OSError, ValueError):
            return None
        # A mapping stays when its file is closed.
        finally:
            os.close(fd)

    @property
    def agent_pid(self) -> int:
        """The process that keeps the page."""
        return int(Path(self.where).parts[2])

    def row(self, local_rank: int) -> Row | None:
        """The row of a rank; None where there are too many of them."""
        if not 0 <= local_rank < NUM_ROWS:
            return None
        begin = _HEAD + _ROW * local_rank
        return Row(self._words[begin : begin + _ROW])

    def sheet(self, local_rank: int) -> Sheet | None:
        """What a rank does right now; None where there are too many of them."""
        if not 0 <= local_rank < NUM_ROWS:
            return None
        begin = _SHEETS + sheet.BYTES * local_rank
        return Sheet(memoryview(self._memory)[begin : begin + sheet.BYTES].cast("d"))

    def rows(self) -> list[tuple[int, Row]]:
        """Local rank and row of all that have come."""
        words, found = self._words, []
        for local_rank, begin in enumerate(range(_HEAD, len(words), _ROW)):
            if words[begin + _PID]:
                found.append((local_rank, Row(words[begin : begin + _ROW])))
        return found

    @property
    def stop(self) -> int:
        """The number of the signal that asks the run to stop in good order; 0 before it."""
        return int(self._words[_STOP])

    @stop.setter
    def stop(self, number: int) -> None:
        self._words[_STOP] = number

    @property
    def is_told_to_stop(self) -> bool:
        """Whether this node asks the run to stop, or all nodes have agreed to."""
        return self._words[_STOP] != 0 or self._words[_AGREED] != 0

    @property
    def is_ending(self) -> bool:
        """Whether the agent ends this start of the ranks, whatever they were told before."""
        return self._words[_ENDING] != 0

    def end_start(self) -> None:
        """The ranks of this start are to end."""
        self._words[_ENDING] = 1

    def agree_to_stop(self) -> None:
        """All ranks stop after this step: should one end otherwise, the next start stops, too."""
        self._words[_AGREED] = 1

    @property
    def run_dir(self) -> str:
        """The run folder, once a rank has said it."""
        text = self._memory[_WORDS_BYTES:_NEXT_TEXT]
        return os.fsdecode(text[: text.index(0)])

    @run_dir.setter
    def run_dir(self, path: str) -> None:
        # A zero byte is left after the text: it ends there.
        data = os.fsencode(path)[: _TEXT_BYTES - 1]
        self._memory[_WORDS_BYTES : _WORDS_BYTES + len(data)] = data

    def clear_rows(self) -> None:
        """For the next start of the workers; the ranks of the last have ended."""
        for local_rank, row in self.rows():
            row.clear()
            if (used := self.sheet(local_rank)) is not None:
                used.clear()
        for word in (_ENDING, _NEXT, _JOINS):
            self._words[word] = 0
        self._words[_STARTS] += 1

    @property
    def next_number(self) -> int:
        """The number of the round that the ranks go on in; 0 where there is none."""
        return int(self._words[_NEXT])

    @property
    def next(self) -> NextRound:
        """The round that the ranks go on in; only where `next_number` says one."""
        text = self._memory[_NEXT_TEXT:_SHEETS]
        return NextRound(**json.loads(text[: text.index(0)]))

    @next.setter
    def next(self, told: NextRound) -> None:
        data = json.dumps(asdict(told)).encode() + b"\0"
        self._memory[_NEXT_TEXT : _NEXT_TEXT + len(data)] = data
        # Last: who reads the number finds the rest.
        self._words[_NEXT] = told.number

    @property
    def joins(self) -> int:
        """The number of this start's round, where others go on in it in their processes; else 0."""
        return int(self._words[_JOINS])

    @joins.setter
    def joins(self, number: int) -> None:
        self._words[_JOINS] = number

    @property
    def num_starts(self) -> int:
        """Starts of the workers that have begun."""
        return int(self._words[_STARTS])


def own_board(environ: Mapping[str, str]) -> Board | None:
    """The page that this process has made before; None where it has not."""
    known = Board.open(environ)
    return known if known is not None and known.agent_pid == os.getpid() else None


def agents_board(environ: Mapping[str, str]) -> Board:
    """The page of this agent: the one it has made already, else a new one."""
    return own_board(environ) or Board.create()
