"""Whatever process dies or freezes at whatever place: no finished step is lost, nothing differs.

One run of three nodes goes through all of it; each test injects one fault and looks at its end.
The short form has each kind of place (a pass, a leg, the update, memory, the disk, a new start, the
rendezvous), rank and agent, and each kind of fault; `make test-faults` has every place.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest
from _pytest.mark import ParameterSet

from benchmarks.faults.chaos import leader
from benchmarks.faults.inject import AGENT, ANY, Fault
from benchmarks.faults.job import CHECKPOINT_STEPS, Job, loopback_nodes, losses, opened, undisturbed
from benchmarks.faults.places import AGENT_PLACES, LEG_PLACES, RANK_PLACES
from benchmarks.workload import slow_model
from tests.e2e.test_runs import free_port
from tests.warm import Warm

LIMIT_S = 40.0
SLOTS = (4, 2, 2)
CLOSE = 1e-9
"""Losses of float64 sums in another order."""
TRIGGER = Fault(kind="die", node="n0", who="3", place="forward")
"""Begins a new round, for the places that are part of one."""
MODEL: dict[str, object] = {"model": f"{slow_model.__file__}:build"}
PAUSE_VARIABLE = "SLOW_MODEL_PAUSE_S"
PAUSE_S = "0.003"
"""Per sample: ranks that wait leave the cores to those that start, and make fewer steps."""


@pytest.fixture(scope="module")
def job(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("faults")
    nodes = loopback_nodes(SLOTS)
    job = Job(folder, nodes, port=free_port(), options=MODEL, starter=warm.start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PAUSE_VARIABLE, PAUSE_S)
        with opened(job):
            job.wait_for_ranks(sum(SLOTS), 120)
            yield job


@dataclass
class Before:
    """The run as a fault finds it."""

    job: Job
    num_resumes: int
    finished: int

    @classmethod
    def of(cls, job: Job) -> Before:
        """All nodes are up and train."""
        start_the_dead(job)
        job.wait_for_ranks(sum(SLOTS), LIMIT_S)
        return cls(job, len(job.tail.resumes), job.tail.look())

    def check(self, most_lost: int = 0) -> None:
        """The run went on behind the fault with nothing lost, and does with all nodes."""
        job = self.job
        job.wait_until(
            lambda: job.tail.look() and len(job.tail.resumes) > self.num_resumes, "a resume"
        )
        job.wait_for_step(job.tail.finished + 1, LIMIT_S)
        start_the_dead(job)
        job.wait_for_ranks(sum(SLOTS), LIMIT_S)
        resumes = job.tail.resumes[self.num_resumes :]
        assert job.tail.lost_since(self.num_resumes) <= most_lost, resumes
        assert job.damage() == []


def start_the_dead(job: Job) -> None:
    """What an operator does."""
    for node in job.nodes:
        if node.name in job.agents:
            job.signal_node(node.name, signal.SIGCONT)
    job.reap()
    for node in job.nodes:
        if node.name not in job.agents:
            job.start(node.name)


RANK_CASES = [
    ("die", "checkpoint commit", ANY, ANY),
    ("die", "backward", "n1", "0"),
    ("die", "exchange", ANY, ANY),
    ("die", "sync wait", "n1", "1"),
    ("die", "optimizer", "n0", "1"),
    ("die", "snapshot seal", "n1", "0"),
    ("raise", "backward", "n2", "1"),
    ("freeze", "forward", "n1", "1"),
]
MORE_RANK_CASES = [
    ("die", "checkpoint write", ANY, ANY),
    ("die", "checkpoint prune", ANY, ANY),
    ("die", "forward", "n0", "2"),
    ("die", "collect", "n0", "2"),
    ("die", "distribute", "n0", "3"),
    ("die", "step end", "n2", "0"),
    ("die", "snapshot copy", "n0", "3"),
    ("freeze", "exchange", ANY, ANY),
]
slow = pytest.mark.slow


def long(cases: Sequence[tuple[str, ...]]) -> list[ParameterSet]:
    """Cases of the long form."""
    return [pytest.param(*case, marks=slow) for case in cases]


@pytest.mark.parametrize(("kind", "place", "node", "who"), [*RANK_CASES, *long(MORE_RANK_CASES)])
def test_a_rank_in_a_step(job: Job, kind: str, place: str, node: str, who: str) -> None:
    before = Before.of(job)
    fault = Fault(kind=kind, node=node, who=who, place=place, step=before.finished + 2)
    job.faults.forget(fault)
    job.faults.arm(fault)
    job.wait_for_fault(fault, LIMIT_S)
    before.check()


@pytest.mark.parametrize(
    ("kind", "place", "node", "who"),
    [
        ("die", "meeting", "n1", "0"),
        ("die", "restore load", "n2", "1"),
        ("die", "rendezvous accept", "n1", AGENT),
        ("freeze", "rendezvous accept", "n2", AGENT),
        *long(
            [
                ("die", "restore survey", "n0", "0"),
                ("freeze", "restore load", "n0", "0"),
                ("die", "rendezvous want", "n2", AGENT),
                ("die", "rendezvous enter", "n2", AGENT),
            ]
        ),
    ],
)
def test_a_rank_or_an_agent_in_the_restart_behind_another_fault(
    job: Job, kind: str, place: str, node: str, who: str
) -> None:
    before = Before.of(job)
    fault = Fault(kind=kind, node=node, who=who, place=place)
    job.faults.forget(fault)
    job.faults.forget(TRIGGER)
    job.faults.arm(fault)
    job.faults.arm(TRIGGER)
    job.wait_for_fault(fault, LIMIT_S)
    before.check()


@pytest.mark.parametrize("place", ["restore receive", pytest.param("restore send", marks=slow)])
def test_a_rank_that_hands_the_state_to_a_node_without_any(job: Job, place: str) -> None:
    before = Before.of(job)
    # A checkpoint as new as the snapshot would be read, and nobody would hand anything over.
    finished, every = job.tail.look(), CHECKPOINT_STEPS
    job.wait_for_step(finished - finished % every + every + every // 4, LIMIT_S)
    job.kill_node("n2")
    job.forget_memory("n2")
    fault = Fault(kind="die", node=ANY, who=ANY, place=place)
    job.faults.arm(fault)
    job.start("n2")
    job.wait_for_fault(fault, LIMIT_S)
    before.check()


def test_the_agent_that_keeps_the_store_of_a_round(job: Job) -> None:
    before = Before.of(job)
    fault = Fault(kind="die", node=ANY, who=ANY, place="rendezvous host")
    job.faults.forget(TRIGGER)
    job.faults.arm(fault)
    job.faults.arm(TRIGGER)
    job.wait_for_fault(fault, LIMIT_S)
    before.check()


def test_the_next_coordinator_as_it_takes_over(job: Job) -> None:
    before = Before.of(job)
    fault = Fault(kind="die", node=ANY, who=ANY, place="take-over")
    job.faults.arm(fault)
    job.kill_agent(leader(job))
    job.wait_for_fault(fault, LIMIT_S)
    before.check()


def test_every_process_at_once(job: Job) -> None:
    before = Before.of(job)
    for name in list(job.agents):
        job.signal_node(name, signal.SIGSTOP)  # so that none sees another one go
    for name in list(job.agents):
        job.kill_node(name)
    assert wait_for_none(job) == []
    start_the_dead(job)
    before.check()


def test_a_rank_that_dies_once_all_have_stopped_starts_no_run_of_its_own(
    job: Job,
) -> None:
    before = Before.of(job)
    fault = Fault(kind="die", node="n1", who="0", place="exit")
    job.faults.arm(fault)
    assert job.drain() == [75] * len(SLOTS), job.text()[-6000:]
    assert job.faults.struck_at(fault) is not None
    assert wait_for_none(job) == []
    start_the_dead(job)
    before.check()


def test_at_last_the_run_ends_in_good_order_with_the_curve_of_one_without_faults(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    Before.of(job)
    assert job.drain() == [75] * len(SLOTS), job.text()[-6000:]
    found = losses(job.run_dir)
    assert list(found) == list(range(len(found)))
    monkeypatch.setenv(PAUSE_VARIABLE, "0")
    expected = losses(undisturbed(job.folder, len(found), MODEL, job.starter))
    assert found == pytest.approx(expected, rel=CLOSE)
    assert wait_for_none(job) == []
    assert job.leftovers() == []
    assert job.damage() == []


def wait_for_none(job: Job) -> list[str]:
    """The processes of the job that are left after a moment."""
    deadline = time.monotonic() + 5
    while (left := job.orphans()) and time.monotonic() < deadline:
        time.sleep(0.05)
    words = []
    for pid in left:
        with suppress(psutil.NoSuchProcess):
            words.append(f"{pid} {psutil.Process(pid).cmdline()} of {os.getpid()}")
    return words


def test_every_place_has_a_test() -> None:
    tested = {place for _, place, _, _ in (*RANK_CASES, *MORE_RANK_CASES)}
    tested |= {"meeting", "restore survey", "restore load", "restore send", "restore receive"}
    tested |= {"rendezvous want", "rendezvous accept", "rendezvous enter", "rendezvous host"}
    assert {*RANK_PLACES, *LEG_PLACES, *AGENT_PLACES} - tested == {"exit", "take-over"}
