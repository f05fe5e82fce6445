"""A run that is hit again and again, with an operator who starts again what is down."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.cluster.waiting import comes_true
from benchmarks.faults.job import Job, losses, undisturbed
from benchmarks.faults.plan import Blow
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths

CLOSE = 1e-9
"""Losses of float64 sums in another order."""
OPERATOR_S = 1.0
"""How long it takes until somebody starts an agent again that is down."""
LIMIT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What became of one blow, or of two at a time.

    took_s: from the last blow to the next finished step; None where the round went on.
    lost: finished steps done again. whole_s: until all nodes were in again.
    """

    kinds: tuple[str, ...]
    took_s: float | None
    whole_s: float
    lost: int


@dataclass
class Chaos:
    """Hits a job.

    job: all its nodes train. say: is told what happens.
    """

    job: Job
    say: Callable[[str], None]
    recoveries: list[Recovery] = field(default_factory=list)

    def run(self, blows: Sequence[Blow]) -> None:
        """All blows, and the recoveries from them.

        Raises:
            AssertionError: the run does not continue.
        """
        for index, blow in enumerate(blows):
            if blow.is_second:
                continue
            # A second blow comes with the one before it: both are one recovery.
            follow = blows[index + 1 : index + 2]
            pair = [blow, *(b for b in follow if b.is_second)]
            self._one(index, pair)

    def losses(self) -> list[str]:
        """The blows that cost finished steps."""
        return [
            f"{', then '.join(one.kinds)}: {one.lost} finished steps lost"
            for one in self.recoveries
            if one.lost
        ]

    def _one(self, index: int, pair: Sequence[Blow]) -> None:
        job = self.job
        # A run that makes steps again is the sign that the last recovery is over.
        job.wait_for_step(job.tail.look() + pair[0].after_steps, LIMIT_S)
        resumes = len(job.tail.resumes)
        names = ", then ".join(f"{b.kind} (n{b.node}.{b.local_rank})" for b in pair)
        heals: list[tuple[float, Callable[[], None]]] = []
        # Of the last blow in the end: the recovery is measured from there.
        at = time.monotonic()
        for blow in pair:
            if blow.is_second:
                self._look_for(blow.apart_s)
            at = time.monotonic()
            heal = self._strike(blow)
            if heal is not None:
                heals.append((at + blow.lasts_s, heal))
        # Meanwhile the operator heals and starts what is down, as nothing else brings agents back.
        self._operate(heals, at + OPERATOR_S)
        # The next blow counts on all nodes being there.
        job.wait_for_ranks(sum(node.slots for node in job.nodes), LIMIT_S)
        whole = time.monotonic()
        step_at = job.tail.next_finished(at)
        recovery = Recovery(
            kinds=tuple(b.kind for b in pair),
            took_s=None if step_at is None else step_at - at,
            whole_s=whole - at,
            lost=job.tail.lost_since(resumes),
        )
        self.recoveries.append(recovery)
        stall = (
            "the round continues" if step_at is None else f"next step after {step_at - at:.2f} s"
        )
        self.say(
            f"{index}: {names}: {stall}, all in after {recovery.whole_s:.2f} s, "
            f"{recovery.lost} lost, step {job.tail.finished}"
        )

    def _look_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.job.tail.look()
            time.sleep(0.005)

    def _operate(self, heals: list[tuple[float, Callable[[], None]]], restart_at: float) -> None:
        """Heals what is due, starts what is down, until nothing is left to do."""
        job, left = self.job, sorted(heals, key=lambda heal: heal[0])
        while left or time.monotonic() < restart_at:
            if left and time.monotonic() >= left[0][0]:
                # `heals` is in the order of time: the first is due first.
                left.pop(0)[1]()
            self._look_for(0.02)
        self._start_the_dead()
        finished = job.tail.look()
        # Who was cut off, or told to go by the others, may leave only now.
        deadline = time.monotonic() + LIMIT_S
        while job.tail.look() < finished + 2 and time.monotonic() < deadline:
            self._start_the_dead()
            self._look_for(0.1)

    def _start_the_dead(self) -> None:
        self.job.reap()
        for node in self.job.nodes:
            if node.name not in self.job.agents:
                self.job.start(node.name)

    def _strike(self, blow: Blow) -> Callable[[], None] | None:
        """Does it; what heals it again, if anything does."""
        job = self.job
        job.reap()
        name = job.nodes[blow.node].name
        if blow.kind == "kill coordinator":
            name = leader(job)
        if blow.kind == "kill all":
            kill_at_once(job, list(job.agents))
            return None
        if blow.kind == "kill two":
            kill_at_once(job, apart(job, name))
            return None
        # The first blow of a pair may have ended it already.
        if name not in job.agents:
            return None
        # A rank may end, or not have started yet, between the look and the signal.
        with suppress(ProcessLookupError, IndexError):
            match blow.kind:
                case "kill worker":
                    job.signal_rank(name, blow.local_rank, signal.SIGKILL)
                case "kill agent":
                    job.kill_agent(name)
                case "kill node" | "kill coordinator":
                    job.kill_node(name)
                case "freeze worker":
                    job.signal_rank(name, blow.local_rank, signal.SIGSTOP)
                case "freeze node":
                    job.signal_node(name, signal.SIGSTOP)
                    return lambda: job.thaw_node(name)
                case "cut link":
                    job.link(name, "down")
                    return lambda: job.link(name, "up")
        return None


def leader(job: Job) -> str:
    """The node whose coordinator became active last."""
    rows = read_events(RunPaths(job.run_dir).events)
    return str([row["node"] for row in rows if name_of(row) == "coordinator: active"][-1])


def apart(job: Job, name: str) -> tuple[str, str]:
    """A node of the newest round and the next one in it: buddies are half of the ring away."""
    rows = read_events(RunPaths(job.run_dir).events)
    nodes = [row["nodes"] for row in rows if name_of(row) == "coordinator: round"][-1]
    return name, str(nodes[(nodes.index(name) + 1) % len(nodes)])


def kill_at_once(job: Job, names: Iterable[str]) -> None:
    """Ends everything of some nodes so that none of them sees another one go."""
    there = [name for name in names if name in job.agents]
    for name in there:
        job.signal_node(name, signal.SIGSTOP)
    for name in there:
        job.kill_node(name)


def verdict(job: Job) -> list[str]:
    """Ends the run in good order; returns all that is wrong after it."""
    codes = job.drain(LIMIT_S)
    wrong = [] if set(codes) == {75} else [f"agents ended with {codes}, not all with 75"]
    if not comes_true(lambda: not job.orphans(), 5.0):
        wrong.append(f"processes left: {job.orphans()}")
    if job.leftovers():
        wrong.append(f"memory left: {job.leftovers()}")
    wrong += [f"damaged: {text}" for text in job.damage()]
    # Every step once and in order, whatever was done again in between.
    found = losses(job.run_dir)
    if list(found) != list(range(len(found))):
        wrong.append(f"the history has {len(found)} steps, not each once and in order")
    # The reference: the same steps in one process, which no fault has disturbed.
    work = {name: value for name, value in job.work.items() if name != "cut"}
    expected = losses(undisturbed(job.folder, len(found), work, job.starter))
    far = [s for s, loss in found.items() if abs(loss - expected[s]) > CLOSE * abs(expected[s])]
    if far:
        wrong.append(f"losses differ from step {far[0]} on, in {len(far)} steps")
    return wrong
