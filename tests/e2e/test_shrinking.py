"""One bundle over three nodes: two are lost, one after the other, and come back, without a loss."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.events import read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.test_runs import (
    BIN,
    LIMIT_S,
    Agents,
    free_port,
    history,
    kill_families,
    train_words,
    warm_agents,
)

__all__ = ["warm_agents"]  # a fixture

SHAPES = "1,1,1|1,1|1"
STEPS_PER_EPOCH = 5
CLOSE = 1e-10


def until(is_so: Callable[[], bool], agents: Agents) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.01)


def test_a_bundle_outlives_its_nodes_and_grows_back(warm_agents: Agents, tmp_path: Path) -> None:
    run_dir, alone, port = tmp_path / "run", tmp_path / "alone", free_port()
    ends = ",".join(f"127.0.0.{n + 1}:{port}" for n in range(3))
    options = {"epochs": 1000, "share": "equal", "precision": "float64", "snapshot-steps": 1}

    def words_of(folder: Path, shape: str) -> list[str]:
        words = train_words(folder, shape=shape, **options)
        return [word for word in words if not word.startswith("--cut=")]

    def start(node: int) -> int:
        own = [
            str(BIN / "bundlerun"), "run", "--nnodes=1:3", f"--rdzv-endpoint={ends}",
            f"--local-addr=127.0.0.{node + 1}", f"--node-name=n{node}", "--devices=cpu",
            "--slots=1", f"--snapshot-dir={tmp_path / 'memory'}",
        ]  # fmt: skip
        return warm_agents.start([*own, *words_of(run_dir, SHAPES)]).pid

    def num_steps() -> int:
        return len(history(run_dir, "step"))

    def rounds() -> list[str]:
        """The shapes of the rounds, in order."""
        met = [e for e in read_events(RunPaths(run_dir).events) if e["event"] == "met"]
        return [e["shape"] for e in met if e["rank"] == 0]

    pids = [start(node) for node in range(3)]
    until(lambda: num_steps() >= 5, warm_agents)
    for lost in (2, 1):
        kill_families(pids[lost])
        before = num_steps()
        until(lambda: num_steps() >= before + 5, warm_agents)  # noqa: B023
    for back in (1, 2):
        start(back)
    until(lambda: rounds()[-1] == "1,1,1", warm_agents)
    at_last = num_steps() + 5
    until(lambda: num_steps() >= at_last, warm_agents)
    warm_agents.kill_all()

    assert rounds()[:3] == ["1,1,1", "1,1", "1"]
    restarts = history(run_dir, "restart")
    # A checkpoint as new as the snapshot is read instead; there is one at each epoch's end.
    others = [row for row in restarts if row["step"] % STEPS_PER_EPOCH]
    assert {row["source"] for row in others} <= {"snapshot"}, restarts
    one = [sys.executable, "-m", "bundlerun.workers.train", *words_of(alone, "1")]
    warm_agents.start(one)
    until(lambda: len(history(alone, "step")) >= at_last, warm_agents)
    warm_agents.kill_all()
    steps = [row["step"] for row in history(run_dir, "step")]
    assert steps == list(range(len(steps))), "each step once"
    found, wanted = (
        [row["loss"] for row in history(folder, "step")][:at_last] for folder in (run_dir, alone)
    )
    assert found == pytest.approx(wanted, rel=CLOSE)
