"""A node's link goes down at a named place: the others go on, and it comes back when healed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.faults.chaos import leader, verdict
from benchmarks.faults.inject import AGENT, Fault
from benchmarks.faults.job import Job, host_nodes, opened
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.warm import Warm

SLOTS = (2, 2, 2)
LIMIT_S = 40.0
TRIGGER = Fault(kind="die", node="n0", who="0", place="forward")
"""Begins a new round, for the place that is part of one."""
CUTS = [
    Fault(kind="cut", node="n1", who="0", place="backward"),
    Fault(kind="cut", node="n2", who=AGENT, place="rendezvous accept"),
]
MORE_CUTS = [
    Fault(kind="cut", node="n2", who="0", place="exchange"),
    Fault(kind="cut", node="n1", who="1", place="snapshot copy"),
]


@pytest.mark.netns
@pytest.mark.parametrize(
    "cuts",
    [pytest.param(CUTS, id="short"), pytest.param(MORE_CUTS, id="more", marks=pytest.mark.slow)],
)
def test_a_link_that_is_cut_at_a_named_place_costs_no_finished_step(
    warm: Warm, tmp_path: Path, cuts: list[Fault]
) -> None:
    """The short form: one of a rank in a step, and one of an agent in a rendezvous."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_hosts(len(SLOTS), Wire(mbit_per_s=1000)) as hosts:
        job = Job(tmp_path, host_nodes(hosts, SLOTS), hosts=hosts, starter=warm.start)
        with opened(job):
            for cut in cuts:
                job.wait_for_ranks(sum(SLOTS), LIMIT_S)
                strike(job, cut)
            job.wait_for_ranks(sum(SLOTS), LIMIT_S)
            assert verdict(job) == []


@pytest.mark.netns
@pytest.mark.parametrize(
    ("is_leader", "has_given_way"),
    [(False, False), (True, False), (False, True)],
    ids=["a follower", "the coordinator", "one that has given way"],
)
def test_a_node_that_is_cut_off_while_the_run_ends_does_not_go_on_alone(
    warm: Warm, tmp_path: Path, is_leader: bool, has_given_way: bool
) -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_hosts(len(SLOTS), Wire(mbit_per_s=1000)) as hosts:
        job = Job(tmp_path, host_nodes(hosts, SLOTS), hosts=hosts, starter=warm.start)
        with opened(job):
            job.wait_for_ranks(sum(SLOTS), LIMIT_S)
            leads = leader(job)
            name = leads if is_leader else next(name for name in job.agents if name != leads)
            at = time.monotonic()
            job.link(name, "down")
            job.wait_until(lambda: job.tail.look() and job.tail.next_finished(at), "a step")
            if has_given_way:
                events = RunPaths(job.run_dir).events / f"{name}.jsonl"
                job.wait_until(lambda: '"coordinator: fenced"' in events.read_text(), "the fence")
            alone = job.agents.pop(name)
            assert job.drain() == [75, 75]
            num_steps = job.tail.look()
            job.agents[name] = alone
            job.link(name, "up")
            assert alone.wait(LIMIT_S) == 75  # as the run has: it can go on
            assert job.tail.look() == num_steps


def strike(job: Job, cut: Fault) -> None:
    """Cuts, looks whether the others go on with what was finished, heals."""
    num_resumes = len(job.tail.resumes)
    job.faults.arm(cut)
    if cut.who == AGENT:
        job.faults.forget(TRIGGER)
        job.faults.arm(TRIGGER)
    at = job.wait_for_fault(cut, LIMIT_S)
    job.wait_until(lambda: job.tail.look() and job.tail.next_finished(at), "a step", LIMIT_S)
    assert job.tail.lost_since(num_resumes) == 0, job.tail.resumes[num_resumes:]
    job.link(cut.node, "up")
    job.reap()
    for node in job.nodes:
        if node.name not in job.agents:
            job.start(node.name)
