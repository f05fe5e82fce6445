"""A few faults of the chaos run: on the loopback everywhere, with links of their own as root."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.faults.chaos import Chaos, verdict
from benchmarks.faults.job import Job, host_nodes, loopback_nodes, opened
from benchmarks.faults.plan import plan_blows
from tests.e2e.test_runs import free_port
from tests.warm import Warm

SLOTS = (2, 2)
COUNT, FEW = 5, 3
SEED = 3


def survive(job: Job, count: int, *, has_links: bool) -> None:
    """Hits a job with a few blows; afterwards everything is right."""
    with opened(job):
        job.wait_for_ranks(sum(SLOTS), 120)
        chaos = Chaos(job, print)
        chaos.run(plan_blows(SEED, count, SLOTS, has_links=has_links))
        assert chaos.recoveries
        assert chaos.losses() == []
        assert verdict(job) == []


def test_a_run_on_the_loopback_survives_what_comes(warm: Warm, tmp_path: Path) -> None:
    """A worker is killed, the coordinator, and a node is frozen."""
    nodes = loopback_nodes(SLOTS)
    job = Job(tmp_path, nodes, port=free_port(), starter=warm.start)
    survive(job, FEW, has_links=False)


@pytest.mark.netns
@pytest.mark.slow
def test_a_run_of_nodes_with_links_survives_what_comes(warm: Warm, tmp_path: Path) -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with open_hosts(len(SLOTS), Wire(mbit_per_s=1000)) as hosts:
        nodes = host_nodes(hosts, SLOTS)
        survive(Job(tmp_path, nodes, hosts=hosts, starter=warm.start), COUNT, has_links=True)
