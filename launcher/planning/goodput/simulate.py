"""One run from its begin to its end, event by event; the same seed gives the same run.

             a node goes, all its ranks with it          the round is there, the state too
    TRAINING ----------------------------------> RECOVERING --------------------------> TRAINING
        |                                           ^   |  too few nodes for a bundle
        |  a node comes that makes a bundle more    |   v
        +-------------------------------------------+  WAITING

Times between failures are exponential, so that the next one does not depend on when the last was;
so are the times away. Nodes that train make the work of so many bundles, whatever their number.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heappush

from bundlerun.launcher.planning.goodput.fleet import Absence, Fleet
from bundlerun.launcher.planning.goodput.way import Keeps, Way


class Term(Enum):
    """Where the time of the nodes that a run wants goes."""

    TRAINING = "training"
    SNAPSHOTS = "snapshots"
    CHECKPOINTS = "checkpoints"
    REDONE = "redone"
    RECOVERING = "recovering"
    IDLE = "idle"
    DOWN = "down"


class _Phase(Enum):
    TRAINING = "training"
    RECOVERING = "recovering"
    WAITING = "waiting"


@dataclass(slots=True)
class Course:
    """What became of one run.

    Attributes:
        terms: node-seconds of each; their sum is the nodes that the run wants times its seconds.
        stops: times that all stopped, as a node or its ranks were gone.
        joins: times that all stopped, as a node came.
        lost: times that no node had a copy of some stage any more.
    """

    terms: dict[Term, float] = field(default_factory=lambda: dict.fromkeys(Term, 0.0))
    stops: int = 0
    joins: int = 0
    lost: int = 0


def simulate(fleet: Fleet, way: Way, seconds: float, seed: int) -> Course:
    """A run of so many seconds, which begins among nodes of which some are away as ever."""
    return _Run(fleet, way, random.Random(seed)).until(seconds)


class _Run:
    def __init__(self, fleet: Fleet, way: Way, rng: random.Random) -> None:
        self.fleet, self.way, self.rng = fleet, way, rng
        self.now = 0.0
        self.course = Course()
        self.returns: list[tuple[float, tuple[int, ...]]] = []
        self.seated: list[int] = []
        self.waiting: list[int] = []
        self.place = [0] * fleet.size
        """Of each node in the list that it is in."""
        self.is_up, self.is_seated = [True] * fleet.size, [False] * fleet.size
        self.phase = _Phase.TRAINING
        self.phase_ends = math.inf
        self.bundles = 0
        self.copies: list[int] = []
        """Nodes that hold each stage; nodes of a bundle inside a node hold all of them."""
        self.from_disk = False
        self.work = self.redone = 0.0
        self.unsaved = 0.0
        """Node-seconds of training that no checkpoint has."""
        self.since_resumed_s = 0.0
        self.cycle_s = 0.0
        """Seconds since the last checkpoint was complete, that of the next one too."""
        self._begin()

    def until(self, seconds: float) -> Course:
        """Runs, and counts."""
        while self.now < seconds:
            rate = self._rate()
            next_fault = self.now + self.rng.expovariate(rate) if rate else math.inf
            next_return = self.returns[0][0] if self.returns else math.inf
            at = min(next_fault, next_return, self.phase_ends, seconds)
            self._pass(at - self.now)
            self.now = at
            if at == seconds:
                break
            if at == self.phase_ends:
                self._resume()
            elif at == next_return:
                self._come(heappop(self.returns)[1])
            else:
                self._fault(rate)
        terms, cost = self.course.terms, self.way.snapshot_cost
        kept = self.work - self.redone
        terms[Term.TRAINING], terms[Term.SNAPSHOTS] = (1 - cost) * kept, cost * kept
        terms[Term.REDONE] = self.redone
        return self.course

    # ---------------------------------------------------------------- what happens

    def _begin(self) -> None:
        """Nodes are away as in the long run, for the rest of their times."""
        fleet, rng = self.fleet, self.rng
        share = fleet.rack.odds / (1 + fleet.rack.odds)
        for rack in range(fleet.num_racks):
            if rng.random() < share:
                ids = tuple(self._in_rack(rack))
                self._away(ids, fleet.rack)
        causes = (fleet.failure, fleet.drain)
        if fleet.away_share:
            for node in range(fleet.size):
                if rng.random() < fleet.away_share and self.is_up[node]:
                    (cause,) = rng.choices(causes, [each.odds for each in causes])
                    self._away((node,), cause)
        heapify(self.returns)
        for node in range(fleet.size):
            if self.is_up[node]:
                self._put(node, self.waiting)
        self._resume()

    def _rate(self) -> float:
        fleet, up = self.fleet, len(self.seated) + len(self.waiting)
        alone = fleet.failure.rate + fleet.crash.rate + fleet.drain.rate
        return up * alone + fleet.num_racks * fleet.rack.rate

    def _fault(self, rate: float) -> None:
        """Something goes: a rack, or a node, or only its ranks."""
        fleet, rng = self.fleet, self.rng
        at = rng.random() * rate
        racks = fleet.num_racks * fleet.rack.rate
        if at < racks:
            rack = min(int(at / fleet.rack.rate), fleet.num_racks - 1)
            ids = [node for node in self._in_rack(rack) if self.is_up[node]]
            if ids:
                self._go(ids, fleet.rack)
            return
        causes = (fleet.failure, fleet.crash, fleet.drain)
        (cause,) = rng.choices(causes, [each.rate for each in causes])
        number = rng.randrange(len(self.seated) + len(self.waiting))
        is_seated = number < len(self.seated)
        node = self.seated[number] if is_seated else self.waiting[number - len(self.seated)]
        if cause is not fleet.crash:
            self._go([node], cause)
        elif is_seated:
            self._stop()  # its memory outlives its ranks

    def _go(self, ids: list[int], cause: Absence) -> None:
        num_seated = 0
        for node in ids:
            num_seated += self.is_seated[node]
            self._take(node)
        self._away(tuple(ids), cause)
        if num_seated:
            self._lose_copies(num_seated)
            self._stop()

    def _lose_copies(self, count: int) -> None:
        """Of nodes of a rack, which follow each other, each holds another stage."""
        copies = self.copies
        left = [max(0, each) for each in copies]
        # The more nodes hold a stage, the likelier it is one of those.
        (first,) = self.rng.choices(range(len(copies)), left) if any(left) else (0,)
        for number in range(count):
            copies[(first + number) % len(copies)] -= 1
        if min(copies) <= 0 and not self.from_disk:
            self.from_disk = True
            self.course.lost += 1
            self._do_again(self.unsaved)

    def _stop(self) -> None:
        """All leave the round; who is left meets in another one."""
        if self.phase is _Phase.TRAINING:
            self._break_off()
        if self.phase is not _Phase.WAITING:
            self.course.stops += 1
            self._recover(self._recovery_s)

    def _break_off(self) -> None:
        if self.way.keeps is Keeps.DISK:
            self._do_again(self.unsaved)
        else:
            every_s = self.way.snapshot_steps * self.way.step_s
            unfinished_s = self.since_resumed_s % every_s if every_s else 0.0
            self._do_again(unfinished_s * self.fleet.busy(self.bundles))
        # A checkpoint that was under way begins anew.
        self.cycle_s = min(self.cycle_s, self.way.checkpoint_every_s)

    @property
    def _recovery_s(self) -> float:
        return self.way.restart_s if self.from_disk else self.way.recovery_s

    def _recover(self, seconds: float) -> None:
        self.phase = _Phase.RECOVERING
        here = min(len(self.seated) + len(self.waiting), self.fleet.nodes)
        self.phase_ends = self.now + seconds + self.way.per_node_s * here

    def _do_again(self, work: float) -> None:
        """Node-seconds; no more than there are."""
        again = min(work, self.unsaved)
        self.redone += again
        self.unsaved -= again
        if self.from_disk or self.way.keeps is Keeps.DISK:
            self.cycle_s = 0.0

    def _come(self, ids: Iterable[int]) -> None:
        for node in ids:
            self.is_up[node] = True
            self._put(node, self.waiting)
        up = len(self.seated) + len(self.waiting)
        is_enough = up >= self.way.min_nodes and self.fleet.bundles(up)
        if self.phase is _Phase.TRAINING and self.fleet.bundles(up) > self.bundles:
            self.course.joins += 1
            self._break_off()
            self._recover(self.way.join_s)
        elif self.phase is _Phase.WAITING and is_enough:
            self._recover(self._recovery_s)

    def _resume(self) -> None:
        """The next round is there: who has a place in it, and a copy of what."""
        up = len(self.seated) + len(self.waiting)
        self.bundles = self.fleet.bundles(up) if up >= self.way.min_nodes else 0
        self.phase_ends = math.inf
        self.since_resumed_s = 0.0
        if not self.bundles:
            self.phase = _Phase.WAITING
            return
        self.phase = _Phase.TRAINING
        self.from_disk = False
        wanted = self.fleet.seats(self.bundles)
        while len(self.seated) < wanted:
            self._move(self.waiting[-1], self.seated)
        while len(self.seated) > wanted:
            self._move(self.seated[-1], self.waiting)
        self.copies = [self.fleet.copies(self.bundles)] * self.fleet.span

    # ---------------------------------------------------------------- time

    def _pass(self, seconds: float) -> None:
        terms, fleet = self.course.terms, self.fleet
        here = min(len(self.seated) + len(self.waiting), fleet.nodes)
        terms[Term.DOWN] += (fleet.nodes - here) * seconds
        if self.phase is _Phase.WAITING:
            terms[Term.IDLE] += here * seconds
            return
        is_training = self.phase is _Phase.TRAINING
        busy = fleet.busy(self.bundles if is_training else fleet.bundles(here))
        terms[Term.IDLE] += (here - busy) * seconds
        if is_training:
            self._train(busy, seconds)
        else:
            terms[Term.RECOVERING] += busy * seconds

    def _train(self, busy: float, seconds: float) -> None:
        every_s, cost_s = self.way.checkpoint_every_s, self.way.checkpoint_s
        num_saved, work_s = 0, seconds
        if math.isfinite(every_s):
            whole_s = every_s + cost_s
            begin_s, end_s = self.cycle_s, self.cycle_s + seconds
            num_saved = int(end_s / whole_s)
            self.cycle_s = end_s - num_saved * whole_s
            work_s = num_saved * every_s + min(self.cycle_s, every_s) - min(begin_s, every_s)
        work = busy * work_s
        self.course.terms[Term.CHECKPOINTS] += busy * max(0.0, seconds - work_s)
        self.work += work
        self.unsaved = busy * min(self.cycle_s, every_s) if num_saved else self.unsaved + work
        self.since_resumed_s += work_s

    # ---------------------------------------------------------------- who is where

    def _in_rack(self, rack: int) -> range:
        size = self.fleet.rack_nodes
        return range(rack * size, min((rack + 1) * size, self.fleet.size))

    def _away(self, ids: tuple[int, ...], cause: Absence) -> None:
        for node in ids:
            self.is_up[node] = False
        away_s = self.rng.expovariate(1 / cause.away_s) if cause.away_s else 0.0
        heappush(self.returns, (self.now + away_s, ids))

    def _put(self, node: int, into: list[int]) -> None:
        self.place[node] = len(into)
        self.is_seated[node] = into is self.seated
        into.append(node)

    def _take(self, node: int) -> None:
        """The last one of the list gets its place."""
        out = self.seated if self.is_seated[node] else self.waiting
        last = out.pop()
        if last != node:
            out[self.place[node]] = last
            self.place[last] = self.place[node]

    def _move(self, node: int, into: list[int]) -> None:
        self._take(node)
        self._put(node, into)
