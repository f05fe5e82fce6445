"""What the harness of the faults leaves behind: nothing, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.faults.chaos import Chaos, Recovery
from benchmarks.faults.inject import FOLDER_VARIABLE, NODE_VARIABLE
from benchmarks.faults.job import ROOT, Job
from tests.waiting import wait_until

HARNESS = """
import os, subprocess, sys
from pathlib import Path
from benchmarks.faults.inject import FOLDER_VARIABLE
from benchmarks.faults.job import Job, opened

with opened(Job(Path(sys.argv[1]), [])) as job:
    environ = os.environ | {FOLDER_VARIABLE: str(job.faults.root)}
    # In the place of an agent: with its mark, in a session of its own.
    agent = subprocess.Popen(["sleep", "600"], env=environ, start_new_session=True)
    job.agents["n0"] = agent
    print("up", flush=True)
    agent.wait()
"""


@pytest.mark.timeout(60)
def test_a_harness_that_is_told_to_go_takes_its_agents_along(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HARNESS, str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    harness = subprocess.Popen(words, stdout=subprocess.PIPE, env=environ, text=True)
    job = Job(tmp_path, [])
    try:
        assert harness.stdout is not None
        assert harness.stdout.readline() == "up\n"
        # Its pipe is closed a moment before the kernel tells of its environment.
        wait_until(lambda: len(job.orphans()) == 1, limit_s=30)
        harness.send_signal(signal.SIGTERM)
        assert harness.wait(timeout=30) == 128 + signal.SIGTERM
        assert job.orphans() == []
    finally:
        harness.kill()
        job.end()  # first: what is left of it has the pipe open
        harness.communicate()


@pytest.mark.timeout(60)
def test_a_run_that_does_not_end_is_a_failure_with_its_text(tmp_path: Path) -> None:
    job = Job(tmp_path, [])
    # "up" only once USR1 is ignored, as by a run that hangs.
    words = ["sh", "-c", "trap '' USR1; echo up; exec sleep 600"]
    hung = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert hung.stdout is not None
        assert hung.stdout.readline() == "up\n"
        job.agents["n0"] = hung  # type: ignore[assignment]
        with pytest.raises(AssertionError, match=r"the end: not within 0\.1 s"):
            job.drain(0.1)
    finally:
        hung.kill()
        hung.communicate()


def test_blows_that_cost_steps_are_told(tmp_path: Path) -> None:
    chaos = Chaos(Job(tmp_path, []), print)
    for lost in (0, 2):
        one = Recovery(kinds=("cut link", "kill node"), took_s=1.0, whole_s=1.0, lost=lost)
        chaos.recoveries.append(one)
    assert chaos.losses() == ["cut link, then kill node: 2 finished steps lost"]


def test_a_frozen_node_is_thawed_whatever_became_of_its_agent(tmp_path: Path) -> None:
    job = Job(tmp_path, [])
    marks = {FOLDER_VARIABLE: str(job.faults.root)}
    frozen = {
        name: psutil.Popen(["sleep", "600"], env=marks | {NODE_VARIABLE: name})
        for name in ("n0", "n1")
    }
    try:
        for process in frozen.values():
            process.suspend()
        wait_until(lambda: {p.status() for p in frozen.values()} == {psutil.STATUS_STOPPED})
        job.thaw_node("n0")  # which is in no list of agents
        wait_until(lambda: frozen["n0"].status() == psutil.STATUS_SLEEPING)
        assert frozen["n1"].status() == psutil.STATUS_STOPPED
    finally:
        for process in frozen.values():
            process.kill()
            process.wait()
