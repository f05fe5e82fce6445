from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundlerun.launcher.ranks.leftovers import own_mark, quiet_tracker, sweep

KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from bundlerun.launcher.ranks.leftovers import mark_own
mark_own(Path(sys.argv[1]))
context = multiprocessing.get_context("forkserver")
queue = context.SimpleQueue()
from multiprocessing import util
assert Path(util.get_temp_dir()).parent == Path(sys.argv[1])
print([path.name for path in Path("/dev/shm").glob(f"sem.bundlerun-mp-*-{os.getpid()}-*")])
sys.stdout.flush()
if sys.argv[2] == "die":
    os.killpg(0, signal.SIGKILL)
"""


def run(folder: Path, act: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", KILLED, str(folder), act]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, start_new_session=True
    )


def test_what_a_killed_process_leaves_is_removed_by_the_next_and_nobody_elses(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, "die")
    assert done.returncode == -9, done.stderr
    assert done.stdout.count("sem.bundlerun-mp-") >= 1
    (own,) = tmp_path.iterdir()
    mine = tmp_path / own_mark()
    mine.mkdir()
    foreign = tmp_path / own_mark().replace(f"-{os.getpid()}", "-1")
    foreign.mkdir()
    other_user = tmp_path / f"bundlerun-mp-99999-1-{2**22 + 1}"
    other_user.mkdir()
    swept = sweep(temp=tmp_path)
    assert own in swept
    assert any(path.name.startswith("sem.") for path in swept)
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign, other_user])


def test_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "end")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_quiet", [False, True])
def test_the_tracker_of_a_killed_process_clears_up_without_a_word(is_quiet: bool) -> None:
    environ = {"PYTHONWARNINGS": "default::DeprecationWarning"}
    if is_quiet:
        quiet_tracker(environ)
    script = (
        "import multiprocessing, os, signal\n"
        "lock = multiprocessing.get_context('spawn').Lock()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Its output ends with the tracker, which ends after the process.
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environ,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (b"leaked semaphore" in done.stderr) is not is_quiet
    assert environ["PYTHONWARNINGS"].startswith("default::DeprecationWarning")
