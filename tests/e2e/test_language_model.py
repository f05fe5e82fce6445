"""A small GPT that learns a text on two nodes, one of them killed on the way."""

from __future__ import annotations

import os
import sys
import time
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
    summary,
    warm_agents,
)
from tests.warm import ROOT, Warm

__all__ = ["warm_agents"]  # a fixture

MODEL = f"{ROOT / 'tests' / 'ranks' / 'tiny_gpt.py'}:build"
EPOCHS, STEPS = 3, 150
LINE = "The quick brown fox number {} jumps over {} lazy dogs, and {} of them look up.\n"
CLOSE = 1e-5


def write_text(folder: Path) -> tuple[Path, Path]:
    """A text, and a tokenizer of its letters."""
    made = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    text = "".join(LINE.format(n, n * 7 % 11, n * 5 % 13) for n in range(420))
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    tokenizer = made.Tokenizer(made.models.BPE(letters, []))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "book.txt").write_text(text)
    return folder / "book.txt", folder / "tokenizer.json"


def test_three_epochs_on_two_nodes_one_killed_are_those_of_one_process(
    warm: Warm, warm_agents: Agents, tmp_path: Path
) -> None:
    text, tokenizer = write_text(tmp_path)
    options = {
        "recipe": "language-model", "model": MODEL, "tokenizer": tokenizer, "seq-len": 32,
        "optimizer": "adamw", "lr": 0.01, "batch-size": 6, "microbatch-size": 2,
        "epochs": EPOCHS, "share": "equal", "timeout-s": 60,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    ports = free_port()
    ends = ",".join(f"127.0.0.{n + 1}:{ports}" for n in range(2))

    def start(node: int) -> int:
        own = [
            str(BIN / "bundlerun"), "run", "--nnodes=2:2", f"--rdzv-endpoint={ends}",
            f"--local-addr=127.0.0.{node + 1}", f"--node-name=n{node}", "--devices=cpu",
            "--slots=1", f"--snapshot-dir={tmp_path / 'memory'}", "--snapshot-steps=1",
            f"--run-dir={killed}", "--shape=1,1", "--cut=block2",
        ]  # fmt: skip
        return warm_agents.start([*own, *words, str(text)]).pid

    _, other = start(0), start(1)
    deadline = time.monotonic() + LIMIT_S
    while len(history(killed, "step")) < STEPS // 2:
        assert time.monotonic() < deadline, warm_agents.text()
        time.sleep(0.01)
    kill_families(other)
    start(1)
    first, _, again = warm_agents.wait()
    assert (first, again) == (0, 0), warm_agents.text()
    assert len(history(killed, "restart")) >= 1, read_events(RunPaths(killed).events)

    one = [sys.executable, "-m", "bundlerun.workers.train", "--shape=1", f"--run-dir={alone}"]
    done = warm.run([*one, *words, str(text)], timeout=LIMIT_S, env=os.environ)
    assert done.returncode == 0, done.stderr
    found, wanted = (
        {row["step"]: row["loss"] for row in history(folder, "step")} for folder in (killed, alone)
    )
    assert len(wanted) == summary(alone)["steps"] > STEPS
    assert found == pytest.approx(wanted, rel=CLOSE)
    for row, other_row in zip(history(killed, "eval"), history(alone, "eval"), strict=True):
        assert row["loss"] == pytest.approx(other_row["loss"], rel=CLOSE)
        assert row["metrics"]["perplexity"] < 12
