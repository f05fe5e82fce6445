"""How a run ends before its end: told to stop, given up, its agent gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.cluster.programs import Program
from bundlerun.launcher.cli import main
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.test_runs import BIN, LIMIT_S, Agents, free_port, history, train_words, warm_agents

__all__ = ["warm_agents"]  # a fixture

LONG = {"epochs": 1000, "snapshot-steps": 1, "share": "equal"}


@pytest.fixture
def agents(warm_agents: Agents) -> Agents:
    """How a run ends has nothing to do with how its programs came to have torch."""
    return warm_agents


def wait_for_steps(agent: Program, run_dir: Path, count: int) -> None:
    """Returns once the run has `count` finished steps."""
    deadline = time.monotonic() + LIMIT_S
    while len(history(run_dir, "step")) < count:
        assert time.monotonic() < deadline
        assert agent.poll() is None
        time.sleep(0.02)


def bundlerun(run_dir: Path, *words: str, **changes: object) -> list[str]:
    options = [*words, *train_words(run_dir, **LONG | changes)]
    return [str(BIN / "bundlerun"), "run", "--devices=cpu", "--slots=4", *options]


def two_nodes(run_dir: Path) -> list[list[str]]:
    """The front on one node, the rear on the other: only together they hold a bundle."""
    port = free_port()
    ends = f"--rdzv-endpoint=127.0.0.1:{port}"
    common = ["--nnodes=2", "--nproc-per-node=1", ends]
    return [
        bundlerun(run_dir, *common, f"--local-addr=127.0.0.{n + 1}", f"--node-name=n{n}")
        for n in range(2)
    ]


def outcome_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "outcome.json").read_text())
    return found


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGUSR1],
)
def test_a_signal_ends_a_run_behind_a_step_with_a_checkpoint_and_it_goes_on_from_there(
    agents: Agents, tmp_path: Path, number: signal.Signals
) -> None:
    """The short form is without SIGINT, of which the second is tested below."""
    run_dir = tmp_path / "run"
    agent = agents.start(bundlerun(run_dir))
    wait_for_steps(agent, run_dir, 3)
    agent.send_signal(number)
    assert agents.wait() == [75], agents.text()
    outcome = outcome_of(run_dir)
    done = len(history(run_dir, "step"))
    assert (outcome["state"], outcome["exit_code"], outcome["step"]) == ("stopped", 75, done)
    assert RunPaths(run_dir).checkpoint(done).is_dir()
    assert f"{number.name}: the run stops after this step" in agents.text()
    assert "Traceback" not in agents.text()
    again = agents.start(bundlerun(run_dir, max_steps=done + 2))
    assert agents.wait()[-1] == 0, agents.text()
    assert again.returncode == 0
    assert [row["step"] for row in history(run_dir, "step")] == list(range(done + 2))
    assert history(run_dir, "restart")[0]["step"] == done
    assert outcome_of(run_dir)["state"] == "done"


def test_a_signal_to_one_node_stops_ranks_of_other_stages_on_others_after_the_same_step(
    agents: Agents, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    first, second = (agents.start(words) for words in two_nodes(run_dir))
    wait_for_steps(first, run_dir, 3)
    second.send_signal(signal.SIGTERM)
    assert agents.wait() == [75, 75], agents.text()
    done = len(history(run_dir, "step"))
    assert outcome_of(run_dir)["step"] == done
    events = (run_dir / "rendezvous" / "events").glob("*.jsonl")
    rows = [json.loads(line) for file in events for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "stops"] == [done, done]
    for line in (  # every node's console tells its own story
        ": bundle 0 of 1; training begins",  # of the first to come, whichever that was
        "is in round 1 with node n0: rank",
        "is in round 1 with node n1: rank",
        "node n0: the run is over: ",
        "node n0 ends with exit code 75: stopped before its end",
        "node n1 ends with exit code 75: stopped before its end",
    ):
        assert agents.text().count(line) == 1, agents.text()


def test_drain_stops_a_run_from_outside(agents: Agents, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    agent = agents.start(bundlerun(run_dir))
    wait_for_steps(agent, run_dir, 2)
    words = [str(BIN / "bundlerun"), "drain", str(run_dir), f"--wait={LIMIT_S}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stopped: told to stop")
    assert agents.wait() == [75], agents.text()
    assert not RunPaths(run_dir).drain.exists()


def test_a_request_in_the_first_moments_of_a_start_that_goes_on_is_obeyed(
    agents: Agents, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    agents.start(bundlerun(run_dir, max_steps=2))
    assert agents.wait() == [0], agents.text()
    paths = RunPaths(run_dir)
    paths.drain.write_text("{}")  # what a run has left that was killed before it obeyed
    os.utime(paths.drain, (0, 0))
    agent = agents.start(bundlerun(run_dir))
    deadline = time.monotonic() + LIMIT_S
    while paths.outcome.exists():  # which is the first thing to go
        assert time.monotonic() < deadline
        assert agent.poll() is None
        time.sleep(0.001)
    words = [str(BIN / "bundlerun"), "drain", str(run_dir)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert said.stdout.startswith("asked")
    assert agents.wait() == [0, 75], agents.text()
    assert [row["step"] for row in history(run_dir, "step")] == [0, 1, 2]
    assert not paths.drain.exists()


def test_a_second_interrupt_ends_all_at_once(agents: Agents, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Steps of some seconds: the second signal comes before the first is followed.
    slow = {"synthetic_samples": 40000, "batch_size": 20000, "microbatch_size": 5}
    agent = agents.start(bundlerun(run_dir, **slow))
    deadline = time.monotonic() + LIMIT_S
    while '"restored"' not in _events(run_dir):
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.02)
    family = psutil.Process(agent.pid).children(recursive=True)
    agent.send_signal(signal.SIGINT)
    while "stops after this step" not in agents.text():
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.02)
    agent.send_signal(signal.SIGINT)
    assert agents.wait() == [130], agents.text()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert read_outcome(RunPaths(run_dir)) is None


def _events(run_dir: Path) -> str:
    files = (run_dir / "rendezvous" / "events").glob("*.jsonl")
    return "".join(file.read_text() for file in files)


BROKEN = """
import os, sys
sys.path.insert(0, {folder!r})
from tests.ranks.tiny_model import Tiny

class Broken(Tiny):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > {good}:
            {act}
        return super().forward(x)

def build(num_outputs):
    return Broken(num_outputs)
"""


@pytest.mark.parametrize(
    ("good", "act", "step", "rounds", "why"),
    [
        # Two of four micro-batches a step and rank; the restart is from step 0.
        (4, "raise ValueError('no such luck')", 2, 2, "the same error at the same place and step"),
        (0, "import no_such_module", 0, 1, "the program fails before its first step"),
        (0, "os.kill(os.getpid(), 9)", 0, 3, "3 attempts in a row finished no new step"),
    ],
)
def test_a_run_that_does_not_get_on_is_given_up_with_its_first_error(
    agents: Agents, tmp_path: Path, good: int, act: str, step: int, rounds: int, why: str
) -> None:
    run_dir = tmp_path / "run"
    model = tmp_path / "broken.py"
    model.write_text(BROKEN.format(folder=str(Path(__file__).parents[2]), good=good, act=act))
    changes = {"model": f"{model}:build", "cut": "", "shape": "1", "snapshot": "off"}
    agent = agents.start(bundlerun(run_dir, "--slots=2", **changes))
    assert agent.wait(timeout=LIMIT_S) == 1, agents.text()
    outcome = outcome_of(run_dir)
    assert (outcome["state"], outcome["exit_code"], outcome["step"]) == ("failed", 1, step)
    assert outcome["reason"].startswith(why)
    assert _events(run_dir).count('"in a round"') == rounds
    words = [str(BIN / "bundlerun"), "status", str(run_dir)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert f"failed ({why}" in said.stdout
    if rounds < 3:
        assert "in forward" in outcome["first_error"]["text"]
        assert agents.text().count("Traceback") == 1
        assert outcome["first_error"]["text"].splitlines()[-1] in agents.text()


def torchrun(run_dir: Path, *words: str) -> list[str]:
    return [
        str(BIN / "torchrun"), "--nproc-per-node=2", "--rdzv-backend=bundle",
        "--monitor-interval=0.1",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=stopping", "--max-restarts=100",
        *words, "-m", "bundlerun.workers.train", *train_words(run_dir, **LONG),
    ]  # fmt: skip


def test_under_bare_torchrun_ranks_stop_at_usr1_and_die_with_their_agent(
    agents: Agents, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    agent = agents.start(torchrun(run_dir))
    wait_for_steps(agent, run_dir, 2)
    family = psutil.Process(agent.pid).children(recursive=True)
    assert len(family) == 2
    os.kill(agent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    again = agents.start(torchrun(run_dir))
    wait_for_steps(again, run_dir, len(history(run_dir, "step")) + 2)
    again.send_signal(signal.SIGUSR1)
    assert again.wait(timeout=LIMIT_S) == 0, agents.text()
    assert outcome_of(run_dir)["state"] == "stopped"


def test_ranks_die_with_their_agent_and_a_stopped_one_is_replaced(
    agents: Agents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    agent = agents.start(bundlerun(run_dir))
    wait_for_steps(agent, run_dir, 2)
    rank = _pids(run_dir)[-1]
    os.kill(rank, signal.SIGSTOP)
    deadline = time.monotonic() + LIMIT_S
    while not history(run_dir, "restart"):
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.02)
    assert '"rank stopped"' in _events(run_dir)
    wait_for_steps(agent, run_dir, len(history(run_dir, "step")) + 1)
    steps = [row["step"] for row in history(run_dir, "step")]
    assert steps == list(range(len(steps)))
    family = psutil.Process(agent.pid).children(recursive=True)
    os.kill(agent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert main(["status", str(run_dir)]) == 0
    assert f"lost (killed or lost: process {agent.pid} on " in capsys.readouterr().out


def _pids(run_dir: Path) -> Sequence[int]:
    """Process ids of the ranks that have started, in order of coming."""
    rows = [json.loads(line) for line in _events(run_dir).splitlines()]
    return [row["pid"] for row in rows if row["event"] == "starts"]
