import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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
