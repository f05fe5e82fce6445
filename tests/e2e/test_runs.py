"""Whole runs, typed as a user would: several agents, a kill and a resume, one process."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.cluster.programs import Program, Starter
from benchmarks.faults.tracked import wrong_in
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.warm import Warm

BIN = Path(sys.executable).parent
MODEL = f"{Path(__file__).parent.parent / 'ranks' / 'tiny_model.py'}:build"
LIMIT_S = 120.0


def train_words(run_dir: Path, **changes: object) -> list[str]:
    """A small job: 5 steps per epoch."""
    options: dict[str, object] = {
        "model": MODEL,
        "cut": "second",
        "shape": "1,1",
        "image-size": 8,
        "augment": "none",
        "synthetic-samples": 100,
        "batch-size": 20,
        "microbatch-size": 5,
        "epochs": 2,
        "lr": 0.3,
        "run-dir": run_dir,
        "timeout-s": 60,
    }
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [*(f"--{name}={value}" for name, value in options.items()), "synthetic"]


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meeting(port: int, num_nodes: int = 2) -> list[str]:
    return [
        f"--nnodes={num_nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=e2e",
        "--local-addr=127.0.0.1",
    ]


class Agents:
    """Programs started side by side; whatever is left of them ends with the test."""

    def __init__(self, folder: Path, starter: Starter = subprocess.Popen) -> None:
        self._folder = folder
        self._starter = starter
        self.running: list[Program] = []

    def start(self, words: Sequence[str], starter: Starter | None = None) -> Program:
        log = self._folder / f"agent{len(self.running)}.log"
        with log.open("wb") as file:
            agent = (starter or self._starter)(
                list(words),
                stdout=file,
                stderr=file,
                env=os.environ,
                cwd=Path.cwd(),
                start_new_session=True,
            )
        self.running.append(agent)
        return agent

    def text(self) -> str:
        return "\n".join(
            (self._folder / f"agent{i}.log").read_text() for i in range(len(self.running))
        )

    def wait(self) -> list[int]:
        deadline = time.monotonic() + LIMIT_S
        return [a.wait(timeout=max(0.1, deadline - time.monotonic())) for a in self.running]

    def kill_all(self) -> None:
        for agent in self.running:
            try:
                os.killpg(agent.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    """Started as a user starts them, imports included."""
    started = Agents(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def warm_agents(warm: Warm, tmp_path: Path) -> Iterator[Agents]:
    """The same in less time."""
    started = Agents(tmp_path, warm.start)
    yield started
    started.kill_all()


def kill_families(*pids: int) -> None:
    """Kills programs with all that they have started."""
    family = [
        process
        for pid in pids
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    ]
    for process in family:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself meanwhile
            process.kill()
    psutil.wait_procs(family, timeout=10)


def summary(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def history(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else []
    return [row for row in rows if row["kind"] == kind]


def test_torchrun_alone_trains_on_nodes_of_different_size(
    warm_agents: Agents, tmp_path: Path
) -> None:
    run_dir, port, agents = tmp_path / "run", free_port(), warm_agents
    for count in (3, 2):
        agents.start(
            [
                str(BIN / "torchrun"),
                *meeting(port),
                f"--nproc-per-node={count}",
                "-m",
                "bundlerun.workers.train",
                *train_words(run_dir),
            ]
        )
    assert agents.wait() == [0, 0], agents.text()
    assert summary(run_dir)["steps"] == 10
    assert "is spare" in agents.text()
    assert "2 bundles of shape 1,1 on 2 nodes" in agents.text()


def test_a_killed_run_resumes_and_ends_like_one_that_was_not(
    agents: Agents, warm: Warm, tmp_path: Path
) -> None:
    def start_both(run_dir: Path, starter: Starter | None = None) -> None:
        port = free_port()
        for node in range(2):
            agents.start(
                [
                    str(BIN / "bundlerun"),
                    "run",
                    *meeting(port),
                    f"--node-name=node{node}",
                    "--devices=cpu",
                    "--slots=2",
                    *train_words(run_dir, epochs=20, checkpoint_steps=2, share="equal", **watched),
                ],
                starter,
            )

    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    watched = {"profile": 2, "tracker": "tensorboard" if has_tensorboard else ""}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start_both(whole)
    assert agents.wait() == [0, 0], agents.text()
    assert agents.text().count("by torch's rendezvous c10d, which does not say for whom") == 2

    start_both(killed, warm.start)
    deadline = time.monotonic() + LIMIT_S
    while len(history(killed, "step")) < 10:
        assert time.monotonic() < deadline, agents.text()
        time.sleep(0.02)
    kill_families(*(agent.pid for agent in agents.running[2:]))

    start_both(killed, warm.start)
    assert agents.wait()[4:] == [0, 0], agents.text()
    assert "resumed after step" in agents.text()
    losses = {row["step"]: row["loss"] for row in history(killed, "step")}
    wanted = {row["step"]: row["loss"] for row in history(whole, "step")}
    assert losses == wanted, "the same topology must give the same numbers, bit for bit"
    if has_tensorboard:
        assert wrong_in("tensorboard", RunPaths(killed)) == []
    (timeline,) = (whole / "profile").glob("*/timeline.json.gz")
    events = json.loads(gzip.decompress(timeline.read_bytes()))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {f"node{n} stage {stage} bundle {n}" for n in range(2) for stage in range(2)}, (
        names
    )


def test_no_worker_outlives_a_killed_agent(warm_agents: Agents, tmp_path: Path) -> None:
    agent = warm_agents.start(
        [
            str(BIN / "bundlerun"),
            "run",
            "--devices=cpu",
            "--slots=4",
            *train_words(tmp_path / "run", epochs=100000),
        ]
    )
    deadline = time.monotonic() + LIMIT_S
    while not history(tmp_path / "run", "step"):
        assert time.monotonic() < deadline, warm_agents.text()
        time.sleep(0.02)
    assert "33% of the devices' time is idle by plan" in warm_agents.text()
    workers = psutil.Process(agent.pid).children(recursive=True)
    assert len(workers) >= 4
    agent.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_a_wrong_option_of_a_worker_is_the_exit_code_of_bundlerun(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            str(BIN / "bundlerun"),
            "run",
            "--devices=cpu",
            "--slots=2",
            *train_words(tmp_path / "run", cut="secnd"),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown cut 'secnd'")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_whose_plan_is_chosen_is_foreseen_by_what_it_was_chosen_by(tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", cut="auto", epochs=1)
    done = subprocess.run(
        [str(BIN / "bundlerun"), "run", "--devices=cpu", "--slots=2", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "chosen: shape 1,1 cut at" in done.stderr
    assert "foreseen: " in done.stderr
    assert "no forecast" not in done.stderr


def test_one_process_needs_no_launcher(warm: Warm, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bundlerun.workers.train", *train_words(tmp_path / "run")]
    done = warm.run(words, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["steps"] == 10
