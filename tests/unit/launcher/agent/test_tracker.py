from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, multiprocessing, os, signal, sys
from multiprocessing import resource_tracker
from pathlib import Path
from bundlerun.launcher.agent.tracker import outlive_tracker

outlive_tracker()
context = multiprocessing.get_context("spawn")
old = context.Lock()
name = old._semlock.name
first = resource_tracker._resource_tracker._pid
os.kill(first, signal.SIGKILL)
os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
new = context.Lock()
assert resource_tracker._resource_tracker._pid != first
del old, new
gc.collect()
assert not list(Path("/dev/shm").glob("sem." + name.lstrip("/")))
last = context.Lock()
del last
gc.collect()
print("ended")
"""


def test_a_killed_tracker_costs_no_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("ended\n", "")
