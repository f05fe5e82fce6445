"""The batch scripts on a real Slurm, and what becomes of a job when nodes fail."""

from __future__ import annotations

import time

import pytest

from tests.slurm.harness import STEPS_PER_EPOCH, Jobs, Submitted, train_words

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

SMALL = ("--gpus-per-node=2", "--mincpus=2", "--time=10")
WANTED = {"loss": 1.0}


def finished(job: Submitted) -> None:
    """The job is COMPLETED with 0, its run finished, and nothing is left on any node."""
    assert job.wait_over() == "COMPLETED", job.story()
    assert job.exit_code == "0:0"
    assert job.summary()["steps"] == 2 * STEPS_PER_EPOCH
    for node in job.cluster.names:
        job.wait(f"end on {node}", lambda node=node: not job.cluster.processes(node))


def test_three_nodes_train(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    finished(job)
    print(job.summary()["validation"], job.output())


def test_a_node_that_crashes_is_left_behind(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    job.wait_step(10)
    lost = job.cluster.names[1]
    before = job.step()
    begun = time.monotonic()
    job.cluster.crash(lost)
    job.wait("round without it", lambda: job.events("slurm: x") or job.step() > before + 2)
    print("next step after", time.monotonic() - begun, job.rows("restart"))
    finished(job)
    print(job.story())


def test_the_first_node_lost(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    job.wait_step(10)
    begun = time.monotonic()
    job.cluster.power_off("n1")
    seen = job.wait_requeued()
    print("requeued after", seen - begun)
    job.wait_step(job.step() + 2)
    print("resumed", time.monotonic() - seen, job.rows("restart"))
    finished(job)
    print(job.story())


def test_a_signal_to_the_script_drains_and_requeues(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL)
    job.wait_step(10)
    begun = time.monotonic()
    jobs.cluster.run("scancel", "--batch", "--signal=USR1", job.job_id)
    seen = job.wait_requeued()
    print("requeued after", seen - begun)
    finished(job)
    print(job.story())
