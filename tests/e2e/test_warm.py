"""A program that was forked looks like one that was started."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.warm import Warm

LIMIT_S = 60.0
TELLS = """
import json, os, sys, threading
print(json.dumps({
    "argv": sys.argv, "name": __name__, "environ": dict(os.environ), "folder": os.getcwd(),
    "session": os.getsid(0), "pid": os.getpid(), "threads": threading.active_count(),
    "shown": open("/proc/self/environ").read(), "has_torch": "torch" in sys.modules,
}))
print("beside", file=sys.stderr)
sys.exit(7)
"""


def test_it_has_words_an_environment_a_session_and_a_console_of_its_own(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tells.py"
    file.write_text(TELLS)
    monkeypatch.chdir(tmp_path)
    environ = {"ONE": "1", "HOME": str(tmp_path)}
    done = warm.run([sys.executable, str(file), "a", "b c"], timeout=LIMIT_S, env=environ)
    assert (done.returncode, done.stderr) == (7, "beside\n")
    found = json.loads(done.stdout)
    assert (found["argv"], found["name"]) == ([str(file), "a", "b c"], "__main__")
    assert found["environ"] == environ
    assert dict(pair.split("=") for pair in found["shown"].strip("\0").split("\0")) == environ
    assert found["folder"] == str(tmp_path)
    assert found["session"] == found["pid"] != os.getpid()
    assert (found["threads"], found["has_torch"]) == (1, True)


def test_an_error_has_its_traceback_and_a_killed_one_its_signal(warm: Warm, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("raise ValueError('boom')")
    done = warm.run([sys.executable, str(wrong)], timeout=LIMIT_S)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: boom"
    log, waits = tmp_path / "log", tmp_path / "waits.py"
    waits.write_text("import time; print('here', flush=True); time.sleep(600)")
    with log.open("wb") as output:
        program = warm.start([sys.executable, str(waits)], stdout=output, stderr=output)
    wait_until(lambda: log.read_text() == "here\n")
    assert program.poll() is None
    program.kill()
    assert program.wait(LIMIT_S) == program.poll() == -signal.SIGKILL
    program.kill()  # nobody else is sent it


def test_a_module_and_a_script_of_the_environment_are_run_as_python_would(warm: Warm) -> None:
    for words in (
        [str(Path(sys.executable).with_name("bundlerun")), "--version"],
        [sys.executable, "-m", "bundlerun", "--version"],
    ):
        done = warm.run(words, timeout=LIMIT_S)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("bundlerun ")
