import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bundlerun.launcher.process import die_with_parent

FAMILY = [sys.executable, str(Path(__file__).with_name("forked_family.py"))]


def test_a_worker_is_forked_from_a_process_that_has_everything_loaded() -> None:
    done = subprocess.run(FAMILY, capture_output=True, text=True, timeout=60, check=True)
    answer, exit_code = done.stdout.splitlines()
    found = json.loads(answer)
    assert found["loaded"] == ["before the fork"]
    assert found["parent"] == found["server"]
    assert (exit_code, done.stderr) == ("0", "")


@pytest.mark.parametrize("how", [[], ["fallback"]])
def test_server_and_worker_end_with_a_killed_launcher(how: list[str]) -> None:
    launcher = subprocess.Popen(
        [*FAMILY, "wait", *how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert launcher.stdout is not None
    found = json.loads(launcher.stdout.readline())
    family = [psutil.Process(found["server"]), psutil.Process(found["pid"])]
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(timeout=10)
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        process.kill()
    assert [process.pid for process in alive] == []


@pytest.mark.parametrize("how", [[], ["fallback"]])
def test_a_worker_that_has_not_begun_ends_without_a_word_as_the_launcher_leaves(
    how: list[str],
) -> None:
    done = subprocess.run([*FAMILY, "leave", *how], capture_output=True, text=True, timeout=60)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=10)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_frozen_before_its_first_look_at_its_parent_ends_once_it_goes_on() -> None:
    up, tell = os.pipe()
    server = os.fork()
    if not server:
        parent = os.getpid()
        if os.fork():
            signal.pause()
        os.write(tell, os.getpid().to_bytes(4, "little"))
        os.kill(os.getpid(), signal.SIGSTOP)
        die_with_parent(parent)
        signal.pause()
    rank = psutil.Process(int.from_bytes(os.read(up, 4), "little"))
    try:
        deadline = time.monotonic() + 10
        while rank.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        assert rank.status() == psutil.STATUS_STOPPED, "nobody else can end it"
        rank.resume()
        rank.wait(timeout=10)
    finally:
        with suppress(psutil.NoSuchProcess):
            rank.kill()
