"""What was let go is the machine's again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HOLDS = """
import psutil
from bundlerun.workers.run.given_back import give_back
resident = lambda: psutil.Process().memory_info().rss >> 20
before = resident()
blocks = [bytearray(b"x" * 60_000) for _ in range(2000)]
last = blocks[-1]
del blocks
kept = resident() - before
give_back()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_what_lies_below_a_live_block_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS], check=True, capture_output=True, text=True, timeout=60
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 80, "of the 114 MB most stay with the process"
    assert left < 20
