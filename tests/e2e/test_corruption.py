"""A node that computes wrongly is named and left out, and what it has spoilt is taken back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bundlerun.launcher.corruption.marks import read_marks
from bundlerun.launcher.errors import EXIT_NODE
from bundlerun.launcher.run_folder.events import read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.faulty_model import NODE
from tests.e2e.test_runs import (
    BIN,
    LIMIT_S,
    MODEL,
    Agents,
    free_port,
    history,
    train_words,
    warm_agents,
)

__all__ = ["warm_agents"]  # a fixture

FAULTY = f"{Path(__file__).parent / 'faulty_model.py'}:build"


def until(is_so: Callable[[], bool], agents: Agents) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.01)


def test_a_node_that_computes_wrongly_is_left_out_and_its_steps_are_done_again(
    warm_agents: Agents, tmp_path: Path
) -> None:
    run_dir, alone, port = tmp_path / "run", tmp_path / "alone", free_port()
    ends = ",".join(f"127.0.0.{n + 1}:{port}" for n in range(3))
    options = {
        "epochs": 1000, "share": "equal", "precision": "float64", "shape": "1",
        "batch-size": 30, "microbatch-size": 5, "verify-steps": 10, "synthetic-samples": 600,
    }  # fmt: skip

    def words_of(folder: Path, **changes: object) -> list[str]:
        words = train_words(folder, **options, **changes)
        return [word for word in words if not word.startswith("--cut=")]

    def start(node: int) -> object:
        own = [
            str(BIN / "bundlerun"), "run", "--nnodes=2:3", f"--rdzv-endpoint={ends}",
            f"--local-addr=127.0.0.{node + 1}", f"--node-name=n{node}", "--devices=cpu",
            "--slots=1", f"--snapshot-dir={tmp_path / 'memory'}", "--quarantine",
        ]  # fmt: skip
        return warm_agents.start([*own, *words_of(run_dir, model=FAULTY)])

    def num_steps() -> int:
        return len(history(run_dir, "step"))

    agents = [start(node) for node in range(3)]
    until(lambda: bool(read_marks(RunPaths(run_dir))), warm_agents)
    (mark,) = read_marks(RunPaths(run_dir))
    assert mark.culprits == (NODE,), mark.text
    assert mark.kind == "gradient"
    wanted = mark.step + 15
    until(lambda: num_steps() >= wanted, warm_agents)
    # The others went on, and it has ended by itself, as a machine that is not fit.
    assert agents[2].wait(timeout=LIMIT_S) == EXIT_NODE, warm_agents.text()
    assert "node n2 takes no part in this run any more" in warm_agents.text()
    again = start(2)
    assert again.wait(timeout=LIMIT_S) == EXIT_NODE, warm_agents.text()
    until(lambda: num_steps() >= wanted + 5, warm_agents)
    warm_agents.kill_all()

    (told,) = [e for e in read_events(RunPaths(run_dir).events) if e["event"] == "corruption"]
    assert told["culprits"] == told["left_out"] == [NODE]
    assert told["verified"] == mark.verified
    (restart,) = history(run_dir, "restart")
    assert restart["step"] <= mark.verified
    one = [sys.executable, "-m", "bundlerun.workers.train", *words_of(alone, model=MODEL)]
    warm_agents.start(one)
    until(lambda: len(history(alone, "step")) >= wanted, warm_agents)
    warm_agents.kill_all()
    found, right = (
        [row["loss"] for row in history(folder, "step")][:wanted] for folder in (run_dir, alone)
    )
    assert found == pytest.approx(right, rel=1e-10), "nothing of the wrong gradients is left"
