"""A signal at any moment of a run, to anybody: it ends in time, with a checkpoint where one is due.

The ones that are not slow are one of each kind; `make test-signals` runs all.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster.programs import Program
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.signal_actor import EARLY
from tests.e2e.test_runs import Agents, free_port, history, train_words, warm_agents
from tests.e2e.test_stopping import agents, bundlerun, outcome_of

__all__ = ["agents", "warm_agents"]  # fixtures

FRESH = subprocess.Popen

ACTOR = "tests.e2e.signal_actor"
LIMIT_S = 90.0
"""Longest time from the start to the end, on a busy machine."""
STEPS = 150
"""More than there are in the second for which a rank waits for its agent's word."""
SMALL = {"epochs": STEPS // 5, "checkpoint_steps": 2, "timeout_s": 20}
GONE = {number: 128 + number for number in signal.Signals}
NOW, LATER = "at once", "behind a step"


def start(
    agents: Agents, run_dir: Path, moment: str, target: str, *more: str, number: str = "SIGTERM"
) -> Program:
    folder = run_dir.parent
    program, *words = bundlerun(run_dir, *more, slots=2, **SMALL)
    assert program.endswith("bundlerun")
    # Only a program that imports comes by these moments.
    starter = FRESH if moment in EARLY else None
    return agents.start([*actor(moment, target, number, folder), "bundlerun", *words], starter)


def actor(moment: str, target: str, number: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", ACTOR, moment, target, number, str(folder)]


def check_stopped(run_dir: Path, text: str) -> None:
    """There is a checkpoint of the last finished step, of all that were finished."""
    done = [row["step"] for row in history(run_dir, "step")]
    assert done == list(range(len(done))), text
    assert outcome_of(run_dir)["step"] == len(done) > 0
    assert RunPaths(run_dir).checkpoint(len(done)).is_dir()
    assert "Traceback" not in text


def check_all_done(run_dir: Path, text: str, *, restarts: int) -> None:
    assert [row["step"] for row in history(run_dir, "step")] == list(range(STEPS)), text
    assert len(history(run_dir, "restart")) == restarts, text
    assert RunPaths(run_dir).checkpoint(STEPS).is_dir()


def check_gone(family: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


slow = pytest.mark.slow

ENDS = [
    pytest.param("before torch", "agent", NOW, marks=slow),
    pytest.param("before torch", "group", NOW, marks=slow),
    pytest.param("torch comes", "agent", NOW, marks=slow),
    pytest.param("torch comes", "group", NOW),
    pytest.param("rendezvous want", "agent", NOW, marks=slow),
    pytest.param("rendezvous want", "group", NOW, marks=slow),
    pytest.param("no node comes", "agent", NOW, marks=slow),
    pytest.param("no node comes", "group", NOW, marks=slow),
    pytest.param("rank begins", "agent", NOW, marks=slow),
    pytest.param("rank begins", "group", NOW, marks=slow),
    pytest.param("meeting", "agent", LATER, marks=slow),
    pytest.param("meeting", "group", LATER, marks=slow),
    pytest.param("forward", "agent", LATER, marks=slow),
    pytest.param("forward", "group", LATER),
    pytest.param("step end", "group", LATER, marks=slow),
    pytest.param("validation", "agent", LATER, marks=slow),
    pytest.param("validation", "group", LATER, marks=slow),
    pytest.param("checkpoint write", "agent", LATER, marks=slow),
    pytest.param("checkpoint write", "group", LATER, marks=slow),
    pytest.param("forward, then rendezvous want", "agent", LATER, marks=slow),
    pytest.param("forward, then rendezvous want", "group", LATER, marks=slow),
]


@pytest.mark.parametrize(("moment", "target", "how"), ENDS)
def test_a_signal_ends_a_run(
    agents: Agents, tmp_path: Path, moment: str, target: str, how: str
) -> None:
    run_dir = tmp_path / "run"
    more = ["--nnodes=1"]
    if moment == "no node comes":
        more = ["--nnodes=2", "--nproc-per-node=2", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
        more += ["--local-addr=127.0.0.1"]
    agent = start(agents, run_dir, moment, target, *more)
    code = agent.wait(timeout=LIMIT_S)
    assert (tmp_path / "sent").exists(), agents.text()
    assert code == (75 if how == LATER else GONE[signal.SIGTERM]), agents.text()
    if how == LATER:
        check_stopped(run_dir, agents.text())
    else:
        assert "Traceback" not in agents.text()
        assert not history(run_dir, "step")


@slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_group_that_gets_another_signal_stops_alike(
    agents: Agents, tmp_path: Path, number: str
) -> None:
    agent = start(agents, tmp_path / "run", "forward", "group", number=number)
    assert agent.wait(timeout=LIMIT_S) == 75, agents.text()
    check_stopped(tmp_path / "run", agents.text())


@slow
def test_sigquit_to_the_group_ends_all_at_once(agents: Agents, tmp_path: Path) -> None:
    agent = start(agents, tmp_path / "run", "forward", "group", number="SIGQUIT")
    assert agent.wait(timeout=LIMIT_S) == GONE[signal.SIGQUIT], agents.text()


@pytest.mark.parametrize(
    ("moment", "target", "number", "restarts"),
    [
        pytest.param("exit", "group", "SIGTERM", 0, marks=slow),
        pytest.param("exit", "agent", "SIGTERM", 0, marks=slow),
        pytest.param("forward", "server", "SIGTERM", 0, marks=slow),
        pytest.param("forward", "server", "SIGKILL", 1),
        pytest.param("checkpoint write", "server", "SIGKILL", 1, marks=slow),
        pytest.param("forward", "rank", "SIGTERM", 1, marks=slow),
        pytest.param("forward", "rank", "SIGUSR1", 0, marks=slow),
        pytest.param("forward", "rank", "SIGINT", 0, marks=slow),
        pytest.param("checkpoint write", "rank", "SIGTERM", 1, marks=slow),
        pytest.param("exit", "rank", "SIGKILL", 1, marks=slow),
        pytest.param("meeting", "server", "SIGKILL", 0, marks=slow),
        pytest.param("rank begins", "rank", "SIGKILL", 0, marks=slow),
    ],
)
def test_a_run_outlives_a_signal_that_is_not_for_it(
    agents: Agents, tmp_path: Path, moment: str, target: str, number: str, restarts: int
) -> None:
    run_dir = tmp_path / "run"
    agent = start(agents, run_dir, moment, target, number=number)
    code = agent.wait(timeout=LIMIT_S)
    assert (tmp_path / "sent").exists(), agents.text()
    assert code == 0, agents.text()
    check_all_done(run_dir, agents.text(), restarts=restarts)
    if number == "SIGKILL" and target == "server":
        assert agents.text().count("ranks are forked from is gone") == 1


def alone(run_dir: Path, **changes: object) -> list[str]:
    return ["train", *train_words(run_dir, epochs=1000, snapshot_steps=1, **changes)]


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param("forward", "SIGTERM"),
        pytest.param("validation", "SIGINT", marks=slow),
        pytest.param("checkpoint write", "SIGHUP", marks=slow),
    ],
)
def test_a_lone_process_stops_behind_a_step_with_a_checkpoint(
    agents: Agents, tmp_path: Path, moment: str, number: str
) -> None:
    run_dir = tmp_path / "run"
    words = [*actor(moment, "agent", number, tmp_path), *alone(run_dir, checkpoint_steps=2)]
    assert agents.start(words).wait(timeout=LIMIT_S) == 75, agents.text()
    check_stopped(run_dir, agents.text())
    assert f"{number}: the run stops after this step" in agents.text()


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)


@needs_namespaces
@pytest.mark.parametrize(
    ("moment", "program", "code"),
    [
        pytest.param("torch comes", "bundlerun", GONE[signal.SIGTERM], marks=slow),
        pytest.param("no node comes", "bundlerun", GONE[signal.SIGTERM], marks=slow),
        pytest.param("forward", "bundlerun", 75),
        pytest.param("forward", "train", 75, marks=slow),
    ],
)
def test_process_1_of_a_container_hears_a_signal(
    agents: Agents, tmp_path: Path, moment: str, program: str, code: int
) -> None:
    run_dir = tmp_path / "run"
    more = []
    if moment == "no node comes":
        more = ["--nnodes=2", "--nproc-per-node=2", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
        more += ["--local-addr=127.0.0.1"]
    _, *words = bundlerun(run_dir, *more, slots=2)
    words = ["bundlerun", *words] if program == "bundlerun" else alone(run_dir)
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    first = agents.start([*inside, *actor(moment, "agent", "SIGTERM", tmp_path), *words], FRESH)
    assert first.wait(timeout=LIMIT_S) == code, agents.text()
    if code == 75:
        check_stopped(run_dir, agents.text())


ORPHANS = """
import os, sys, time
from bundlerun.launcher.agent.init import stand_before

code = stand_before()
if code is not None:
    sys.exit(code)
middle = os.fork()
if middle == 0:
    orphan = os.fork()
    if orphan == 0:
        time.sleep(0.05)
        os._exit(0)
    os.write(2, f"{orphan}".encode())
    os._exit(0)
os.waitpid(middle, 0)
deadline = time.monotonic() + 10
others = lambda: {int(n) for n in os.listdir("/proc") if n.isdigit()} - {1, os.getpid()}
while others() and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(7 if not others() else 1)
"""


@needs_namespaces
def test_process_1_collects_orphans_and_ends_with_the_code_of_the_program() -> None:
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = [*inside, sys.executable, "-c", ORPHANS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 7, done.stderr
    assert int(done.stderr) > 1


THREAD = """
import sys, threading
from {module} import main

codes = []
thread = threading.Thread(target=lambda: codes.append(main(sys.argv[1:])))
thread.start()
thread.join()
sys.exit(codes[0])
"""


@pytest.mark.parametrize(
    "module",
    [pytest.param("bundlerun.launcher.cli", marks=slow), pytest.param("bundlerun.workers.train")],
)
def test_called_from_a_thread_a_run_says_once_that_it_hears_no_signals(
    agents: Agents, tmp_path: Path, module: str
) -> None:
    run_dir = tmp_path / "run"
    words = bundlerun(run_dir, slots=2, epochs=1)[1:]
    if module == "bundlerun.workers.train":
        words = train_words(run_dir, epochs=1)
    program = agents.start([sys.executable, "-c", THREAD.format(module=module), *words], FRESH)
    assert program.wait(timeout=LIMIT_S) == 0, agents.text()
    assert agents.text().count("not called from the main thread") == 1
    assert RunPaths(run_dir).checkpoint(5).is_dir()


@slow
def test_a_terminal_that_is_closed_stops_the_run_in_good_order(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = bundlerun(run_dir, slots=2, timeout_s=20)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + LIMIT_S
    while len(history(run_dir, "step")) < 3:
        assert time.monotonic() < deadline
        with suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        time.sleep(0.02)
    os.close(terminal)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    check_stopped(run_dir, "")


@slow
def test_under_nohup_a_closed_terminal_is_nothing_to_a_run(agents: Agents, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    _, *words = bundlerun(run_dir, slots=2, **SMALL)
    sent = [*actor("forward", "group", "SIGHUP", tmp_path), "bundlerun", *words]
    assert agents.start(["nohup", *sent], FRESH).wait(timeout=LIMIT_S) == 0, agents.text()
    assert (tmp_path / "sent").exists()
    check_all_done(run_dir, agents.text(), restarts=0)
