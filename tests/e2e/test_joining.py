"""A node joins, and the ranks of the others go on in their processes: --rdzv-conf hand_over=1.

One run of three nodes goes through all of it. Whoever dies on the way, and wherever: all begin anew
in a round with the node that joins, no finished step is lost, and the curve is that of one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.faults.inject import AGENT, Fault
from benchmarks.faults.job import Job, loopback_nodes, losses, opened, undisturbed
from benchmarks.faults.places import JOIN_AGENT_PLACES, JOIN_RANK_PLACES
from benchmarks.workload import slow_model
from bundlerun.launcher.run_folder.events import EventName, name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.test_runs import free_port
from tests.warm import Warm

LIMIT_S = 60.0
SLOTS = (1, 1, 1)
NODES = tuple(f"n{index}" for index in range(len(SLOTS)))
NEW = "n1"
"""The node that comes back; a candidate to coordinate, but not the first."""
CLOSE = 1e-10
"""Losses of float64 sums in another order."""
OPTIONS: dict[str, object] = {
    "model": f"{slow_model.__file__}:build",
    "shape": "1",
    "cut": "",
    "give-up-after": 0,
}
PAUSE_VARIABLE = "SLOW_MODEL_PAUSE_S"
PAUSE_S = "0.003"
"""Per sample: the cores are left to the node that starts."""


@pytest.fixture(scope="module")
def job(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("joining")
    job = Job(
        folder,
        loopback_nodes(SLOTS),
        port=free_port(),
        options=OPTIONS,
        starter=warm.start,
        conf="first_wait=60,hand_over=1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PAUSE_VARIABLE, PAUSE_S)
        with opened(job):
            job.wait_for_ranks(sum(SLOTS), 120)
            yield job


def events(job: Job, name: EventName, since: float) -> list[dict[str, Any]]:
    """Those of all nodes from then on."""
    rows = read_events(RunPaths(job.run_dir).events)
    return [row for row in rows if name_of(row) == name and row["t_s"] >= since]


def kill_new(job: Job) -> None:
    """The run goes on without the node."""
    at = time.monotonic()
    job.kill_node(NEW)

    def goes_on() -> bool:
        job.tail.look()
        nodes = {row["node"] for row in events(job, "first step", at)}
        return nodes == {*NODES} - {NEW}

    job.wait_until(goes_on, "the run without a node", LIMIT_S)
    job.wait_for_step(job.tail.look() + 1, LIMIT_S)


def wait_for_new(job: Job, since: float) -> None:
    """The node takes part again."""

    def takes_part() -> bool:
        job.tail.look()
        return any(row["node"] == NEW for row in events(job, "first step", since))

    job.wait_until(takes_part, "the node's first step", LIMIT_S)
    job.wait_for_step(job.tail.look() + 1, LIMIT_S)


def pids(job: Job) -> dict[str, int]:
    return {name: job.rank_pid(name, 0) for name in NODES}


def test_the_others_keep_their_processes(job: Job) -> None:
    kill_new(job)
    before, at = pids(job), time.monotonic()
    job.start(NEW)
    wait_for_new(job, at)
    job.wait_until(lambda: len(events(job, "has moved", at)) == len(NODES), "all moved", LIMIT_S)
    after = pids(job)
    assert {name for name in NODES if after[name] == before[name]} == {*NODES} - {NEW}
    assert not events(job, "coordinator: over", at)
    assert job.tail.lost_since(0) == 0
    # Nothing is left of the round before: the next node may come the same way.
    kill_new(job)
    again = time.monotonic()
    job.start(NEW)
    wait_for_new(job, again)
    job.wait_until(lambda: len(events(job, "has moved", again)) == len(NODES), "again", LIMIT_S)


def test_two_nodes_join_one_after_the_other(job: Job) -> None:
    kill_new(job)
    at = time.monotonic()
    job.kill_node("n2")

    def is_alone() -> bool:
        job.tail.look()
        return any(row["node"] == "n0" for row in events(job, "first step", at))

    job.wait_until(is_alone, "the run on one node", LIMIT_S)
    pid = job.rank_pid("n0", 0)
    for count, name in enumerate((NEW, "n2"), 2):
        joins = time.monotonic()
        job.start(name)
        job.wait_until(
            lambda: len(events(job, "has moved", joins)) == count,  # noqa: B023
            f"{count} moved",
            LIMIT_S,
        )
        job.wait_for_step(job.tail.look() + 2, LIMIT_S)
    assert job.rank_pid("n0", 0) == pid
    assert job.tail.lost_since(0) == 0


CASES = [
    ("die", "next round", "n2", "0"),
    ("die", "next groups", "n0", "0"),
    ("die", "keep for next", "n2", "0"),
    ("die", "leave", "n0", "0"),
    ("die", "left", "n2", "0"),
    ("die", "prepared", NEW, "0"),
    ("die", "wait for the others", NEW, "0"),
    ("die", "pass on", "n0", "0"),
    ("die", "passed on", "n0", "0"),
    ("die", "first gate", "n2", "0"),
    ("die", "take", NEW, "0"),
    ("die", "taken", NEW, "0"),
    ("die", "in the next round", "n0", "0"),
    ("freeze", "prepared", NEW, "0"),
    ("freeze", "leave", "n2", "0"),
    ("freeze", "pass on", "n0", "0"),
    ("freeze", "take", NEW, "0"),
    ("raise", "next round", "n0", "0"),
    ("raise", "pass on", "n0", "0"),
    ("raise", "take", NEW, "0"),
    # Last: an agent that is started again comes behind the others, and another node passes on.
    ("die", "go on", "n2", AGENT),
    ("die", "have moved", "n0", AGENT),
]


@pytest.mark.parametrize(("kind", "place", "node", "who"), CASES)
def test_whoever_fails_on_the_way_all_begin_anew(
    job: Job, kind: Any, place: str, node: str, who: str
) -> None:
    kill_new(job)
    at = time.monotonic()
    fault = Fault(kind=kind, node=node, who=who, place=place)
    job.faults.forget(fault)
    job.faults.arm(fault)
    job.start(NEW)
    struck = job.wait_for_fault(fault, LIMIT_S)
    if who == AGENT:
        job.wait_until(lambda: node in job.reap() or node not in job.agents, "its end", LIMIT_S)
        job.start(node)
    wait_for_new(job, max(at, struck) if place != "have moved" else at)
    job.wait_for_ranks(sum(SLOTS), LIMIT_S)
    assert job.tail.lost_since(0) == 0
    assert job.damage() == []


def test_the_node_that_joins_is_killed_while_it_prepares(job: Job) -> None:
    kill_new(job)
    at = time.monotonic()
    job.start(NEW)
    job.wait_until(
        lambda: any(row["node"] == NEW for row in events(job, "starts", at)), "a start", LIMIT_S
    )
    kill_new(job)
    again = time.monotonic()
    job.start(NEW)
    wait_for_new(job, again)
    assert job.tail.lost_since(0) == 0


def test_a_run_that_stops_while_a_node_prepares_ends_all(job: Job) -> None:
    kill_new(job)
    at = time.monotonic()
    fault = Fault(kind="freeze", node=NEW, who="0", place="prepared")
    job.faults.forget(fault)
    job.faults.arm(fault)
    job.start(NEW)
    job.wait_for_fault(fault, LIMIT_S)
    assert job.drain(LIMIT_S) == [75] * len(SLOTS), job.text()[-6000:]
    assert not events(job, "has moved", at)


def test_at_last_the_curve_is_that_of_one_process(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not job.agents
    found = losses(job.run_dir)
    assert list(found) == list(range(len(found)))
    monkeypatch.setenv(PAUSE_VARIABLE, "0")
    options = {"model": OPTIONS["model"]}
    expected = losses(undisturbed(job.folder, len(found), options, job.starter))
    assert found == pytest.approx(expected, rel=CLOSE)
    # The node that was stopped on its way has not come back to remove what it had of before.
    assert [name for name in job.leftovers() if not name.endswith(f"-{NEW}")] == []
    assert job.damage() == []


def test_every_place_has_a_test() -> None:
    tested = {place for _, place, _, _ in CASES}
    assert tested == {*JOIN_RANK_PLACES, *JOIN_AGENT_PLACES}
