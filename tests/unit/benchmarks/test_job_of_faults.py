"""What the harness of the faults leaves behind: nothing, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.job import ROOT, Job

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
        assert len(job.orphans()) == 1
        harness.send_signal(signal.SIGTERM)
        assert harness.wait(timeout=30) == 128 + signal.SIGTERM
        assert job.orphans() == []
    finally:
        harness.kill()
        job.end()  # first: what is left of it has the pipe open
        harness.communicate()
