"""Loops of users' own, as they come in the examples: killed, drained, and gone on with."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import request_stop
from tests.e2e.test_runs import BIN, LIMIT_S, Agents, agents, warm_agents

__all__ = ["agents", "warm_agents"]  # fixtures

EXAMPLES = Path(__file__).parents[2] / "examples"
PROTECTED = str(EXAMPLES / "protected_ddp.py")
PIPELINED = str(EXAMPLES / "pipelined_loop.py")
_LONG = 100_000


def step_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ")]


def wait_for_lines(agents: Agents, count: int) -> None:
    """Returns once as many steps were told, those of earlier starts included."""
    deadline = time.monotonic() + LIMIT_S
    while len(step_lines(agents.text())) < count:
        assert time.monotonic() < deadline, agents.text()
        assert agents.running[-1].poll() is None, agents.text()
        time.sleep(0.02)


def a_rank(agent: int) -> int:
    """A process that talks to others: neither the agent's fork server nor its resource tracker."""
    for process in psutil.Process(agent).children(recursive=True)[::-1]:
        if len(process.net_connections()) >= 2:
            return process.pid
    raise AssertionError("no rank talks to another")


def checked(lines: list[str], num_steps: int) -> None:
    """No step is missing, and each that was done again has given the same number."""
    told: dict[int, set[str]] = {}
    for line in lines:
        told.setdefault(int(line.split()[1]), set()).add(line)
    assert sorted(told) == list(range(num_steps))
    assert [lines for lines in told.values() if len(lines) > 1] == []


def test_a_protected_loop_goes_on_to_the_same_bits_when_a_rank_is_killed_and_after_a_stop(
    warm_agents: Agents, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ["--devices=cpu", "--slots=2", f"--run-dir={run_dir}", PROTECTED]
    command = [str(BIN / "bundlerun"), "script", *words, "--steps"]
    # As many as are not done before the run is told to stop.
    agent = warm_agents.start([*command, str(_LONG)])
    wait_for_lines(warm_agents, 40)
    os.kill(a_rank(agent.pid), signal.SIGKILL)
    done = len(step_lines(warm_agents.text()))
    wait_for_lines(warm_agents, done + 40)
    request_stop(RunPaths(run_dir), "a test")
    assert warm_agents.wait() == [75], warm_agents.text()
    outcome = read_outcome(RunPaths(run_dir))
    assert outcome is not None
    assert outcome.state == "stopped"
    assert "from a snapshot" in warm_agents.text()
    checked(step_lines(warm_agents.text()), outcome.step)
    warm_agents.start([*command, str(_LONG)])
    wait_for_lines(warm_agents, len(step_lines(warm_agents.text())) + 3)
    warm_agents.running[-1].send_signal(signal.SIGTERM)
    assert warm_agents.wait() == [75, 75], warm_agents.text()
    assert f"resumes after step {outcome.step}, from a checkpoint" in warm_agents.text()


def test_an_error_of_the_script_ends_the_run_with_its_traceback(
    warm_agents: Agents, tmp_path: Path
) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(
        "import sys\n"
        "from bundlerun import protect\n"
        "from torch import nn, optim\n"
        "model = nn.Linear(2, 2)\n"
        "with protect(model, optim.SGD(model.parameters(), 0.1)) as run:\n"
        "    for step in run.steps(3):\n"
        "        raise KeyError(sys.argv[1])\n"
    )
    words = ["--devices=cpu", "--slots=1", f"--run-dir={tmp_path / 'run'}"]
    warm_agents.start([str(BIN / "bundlerun"), "script", *words, str(script), "--my_word"])
    assert warm_agents.wait() == [1]
    assert "KeyError: '--my_word'" in warm_agents.text()
    assert f'File "{script}", line 7' in warm_agents.text()


@pytest.mark.slow  # each rank of torchrun imports torch anew
@pytest.mark.parametrize("how", [(), ("-m", "bundlerun.warm")], ids=["plain", "warm"])
def test_a_protected_loop_goes_on_under_plain_torchrun_and_not_for_ever(
    how: tuple[str, ...], agents: Agents, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = ["--rdzv-backend=bundle", "--rdzv-endpoint=127.0.0.1", "--nproc-per-node=2"]
    script = [PROTECTED, f"--run-dir={run_dir}", f"--steps={_LONG}"]
    agent = agents.start([str(BIN / "torchrun"), *words, "--max-restarts=3", *how, *script])
    wait_for_lines(agents, 40)
    os.kill(psutil.Process(agent.pid).children()[-1].pid, signal.SIGKILL)
    wait_for_lines(agents, len(step_lines(agents.text())) + 40)
    # Again, as the next start of a fork is another fork.
    os.kill(psutil.Process(agent.pid).children()[-1].pid, signal.SIGKILL)
    wait_for_lines(agents, len(step_lines(agents.text())) + 40)
    request_stop(RunPaths(run_dir), "a test")
    assert agents.wait() == [0], agents.text()
    outcome = read_outcome(RunPaths(run_dir))
    assert outcome is not None
    assert outcome.state == "stopped"
    checked(step_lines(agents.text()), outcome.step)


def test_the_example_runs_by_itself(agents: Agents, tmp_path: Path) -> None:
    agents.start([sys.executable, PROTECTED, "--steps=3", f"--run-dir={tmp_path / 'run'}"])
    assert agents.wait() == [0], agents.text()
    assert len(step_lines(agents.text())) == 3


def test_a_pipelined_loop_prints_what_one_process_does(warm_agents: Agents, tmp_path: Path) -> None:
    words = ["--steps=4", f"--folder={tmp_path}"]
    ranks = ["--devices=cpu", "--slots=2", f"--run-dir={tmp_path / 'run'}"]
    warm_agents.start([str(BIN / "bundlerun"), "script", *ranks, PIPELINED, *words])
    warm_agents.start([sys.executable, PIPELINED, *words])
    assert warm_agents.wait() == [0, 0], warm_agents.text()
    told = sorted(
        line for line in warm_agents.text().splitlines() if line.startswith(("step", "eval"))
    )
    losses = [float(line.split(" loss ")[1].split()[0].rstrip(",")) for line in told]
    assert len(losses) == 10
    # By a rounding of the last digit that is printed.
    assert losses[::2] == pytest.approx(losses[1::2], abs=2e-6)
