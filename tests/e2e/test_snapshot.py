"""Killed and started again, as a user would: what is in memory is not lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster.programs import Program
from tests.e2e.test_runs import BIN, LIMIT_S, history, kill_families, summary, train_words
from tests.warm import Warm


@contextmanager
def started(warm: Warm, words: list[str], folder: Path) -> Iterator[Program]:
    """A program with snapshots in a folder of the test; whatever is left of it ends with that."""
    environment = os.environ | {"BUNDLERUN_SNAPSHOT_DIR": str(folder / "memory")}
    with (folder / "log").open("ab") as log:
        process = warm.start(words, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=LIMIT_S)


def kill_at_step(process: Program, run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while len(history(run_dir, "step")) < step:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    kill_families(process.pid)


def check_killed_and_started_again(
    warm: Warm, words: list[str], run_dir: Path, folder: Path
) -> None:
    with started(warm, words, folder) as process:
        kill_at_step(process, run_dir, 7)
    done = len(history(run_dir, "step"))
    # A few steps tell; the epoch is long only so that it has not ended before the kill.
    *options, data = words
    with started(warm, [*options, f"--max-steps={done + 5}", data], folder) as process:
        assert process.wait(timeout=LIMIT_S) == 0, (folder / "log").read_text()
    restart = history(run_dir, "restart")[0]
    assert restart["source"] == "snapshot", "no checkpoint is as new"
    assert restart["step"] in (done - 1, done, done + 1)  # the line of a step comes behind it
    steps = [row["step"] for row in history(run_dir, "step")]
    assert steps == list(range(summary(run_dir)["steps"]))
    assert list((folder / "memory").iterdir()) == []


def test_one_process_goes_on_from_memory(warm: Warm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = train_words(run_dir, synthetic_samples=2000, epochs=1, snapshot_steps=1)
    check_killed_and_started_again(
        warm, [sys.executable, "-m", "bundlerun.workers.train", *words], run_dir, tmp_path
    )


def test_a_killed_agent_goes_on_from_memory(warm: Warm, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = train_words(run_dir, synthetic_samples=2000, epochs=1, snapshot_steps=1)
    check_killed_and_started_again(
        warm,
        [str(BIN / "bundlerun"), "run", "--devices=cpu", "--slots=4", *words],
        run_dir,
        tmp_path,
    )
