"""How a process ends."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, threading, torch
from bundlerun.launcher.process import leave

begun = threading.Event()

def work():
    a = torch.ones(300, 300)
    while True:
        torch.mm(a, a)
        begun.set()

atexit.register(print, "in order")
threading.Thread(target=work, daemon=True).start()
begun.wait()
leave(3)
"""


def test_a_thread_inside_torch_does_not_make_a_good_end_an_abort() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in order\n", b"")
