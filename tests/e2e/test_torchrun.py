"""Plain torchrun with its own rendezvous: its restarts recover, too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_runs import BIN, LIMIT_S, Agents, agents, free_port, history, train_words
from tests.e2e.test_stopping import LONG, wait_for_steps

__all__ = ["agents"]  # a fixture


def torchrun(run_dir: Path, *words: str, **changes: object) -> list[str]:
    options = train_words(run_dir, **LONG | changes)
    common = ["--monitor-interval=0.1", "--max-restarts=3", *words]
    return [str(BIN / "torchrun"), *common, "-m", "bundlerun.workers.train", *options]


def wait_for_restart(run_dir: Path, count: int, agents: Agents) -> None:
    deadline = time.monotonic() + LIMIT_S
    while len(history(run_dir, "restart")) < count:
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.02)


def kill_a_rank(agent: int) -> None:
    ranks = psutil.Process(agent).children()
    os.kill(ranks[-1].pid, signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_on_one_node_goes_on_behind_a_killed_rank_again_and_again(
    agents: Agents, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    agent = agents.start(torchrun(run_dir, "--standalone", "--nproc-per-node=2"))
    for count in (1, 2):
        wait_for_steps(agent, run_dir, len(history(run_dir, "step")) + 2)
        kill_a_rank(agent.pid)
        wait_for_restart(run_dir, count, agents)
    wait_for_steps(agent, run_dir, len(history(run_dir, "step")) + 2)
    steps = [row["step"] for row in history(run_dir, "step")]
    assert steps == list(range(len(steps)))


@pytest.mark.slow  # torch's rendezvous waits 30 s for more nodes in each round
def test_torchruns_of_two_nodes_under_c10d_go_on_behind_a_killed_rank(
    agents: Agents, tmp_path: Path
) -> None:
    run_dir, port = tmp_path / "run", free_port()
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two"]
    ends = [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    first, second = (agents.start(torchrun(run_dir, *nodes, *ends)) for _ in range(2))
    wait_for_steps(first, run_dir, 2)
    for count, agent in enumerate((second, first), 1):
        kill_a_rank(agent.pid)
        wait_for_restart(run_dir, count, agents)
        wait_for_steps(first, run_dir, len(history(run_dir, "step")) + 2)
    steps = [row["step"] for row in history(run_dir, "step")]
    assert steps == list(range(len(steps)))
