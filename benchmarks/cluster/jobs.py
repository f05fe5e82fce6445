"""The same training job under `bundlerun run` and under stock torchrun, started and ended here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.cluster.waiting import comes_true
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths

Starter = Literal["bundlerun", "torchrun"]
STARTERS: tuple[Starter, ...] = ("bundlerun", "torchrun")
_BIN = Path(sys.executable).parent
_POLL_S = 0.02
OUTPUT = "output.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is started: agents on this machine that stand for nodes.

    Args:
        num_nodes: agents.
        num_ranks: ranks of each.
        options: of `bundlerun.workers.train`, DATA included, without --run-dir.
    """

    num_nodes: int
    num_ranks: int
    options: Sequence[str]

    def command(self, starter: Starter, node: int, port: int, run_dir: Path) -> list[str]:
        """What a person would type on one node."""
        meeting = [
            f"--nnodes={self.num_nodes}",
            f"--rdzv-endpoint=127.0.0.1:{port}",
            "--rdzv-backend=c10d",
            f"--rdzv-id={run_dir.name}",
            "--local-addr=127.0.0.1",
        ]
        work = [f"--run-dir={run_dir}", "--threads=1", *self.options]
        # The same worker with the same options: only what starts it differs.
        if starter == "torchrun":
            nproc = f"--nproc-per-node={self.num_ranks}"
            return [str(_BIN / "torchrun"), *meeting, nproc, "-m", "bundlerun.workers.train", *work]
        here = [f"--node-name=node{node}", "--devices=cpu", f"--slots={self.num_ranks}"]
        return [str(_BIN / "bundlerun"), "run", *meeting, *here, *work]


class Running:
    """A started job."""

    def __init__(self, agents: Sequence[subprocess.Popen[bytes]], run_dir: Path) -> None:
        self.run_dir = run_dir
        self.started = time.time()
        self._agents = agents

    def processes(self) -> list[psutil.Process]:
        """All processes of the job that are alive, agents included."""
        found = []
        for agent in self._agents:
            try:
                root = psutil.Process(agent.pid)
                # Recursive: ranks have loading processes of their own.
                found += [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def wait(self, timeout_s: float) -> None:
        """Waits for an orderly end.

        Raises:
            RuntimeError: an agent failed, or is not done in time.
        """
        self._poll(lambda: all(a.poll() is not None for a in self._agents), "ended", timeout_s)
        self._check()

    def wait_for_step(self, step: int, timeout_s: float) -> float:
        """When step `step` was finished, seconds since the epoch.

        Raises:
            RuntimeError: an agent failed, or the step is not done in time.
        """
        self._poll(lambda: step in self._step_times(), f"finished step {step}", timeout_s)
        return self._step_times()[step]

    def _step_times(self) -> dict[int, float]:
        rows = read_rows(RunPaths(self.run_dir).metrics)
        return {row["step"]: row["time"] for row in rows if row["kind"] == "step"}

    def _poll(self, is_done: Callable[[], bool], what: str, timeout_s: float) -> None:
        def is_done_or_fails() -> bool:
            if is_done():
                return True
            # A job that has failed will never get there: no need to wait out the limit.
            self._check()
            return False

        if not comes_true(is_done_or_fails, timeout_s, _POLL_S):
            raise RuntimeError(f"the job has not {what} in {timeout_s} s")

    def _check(self) -> None:
        codes = [agent.poll() for agent in self._agents]
        if any(codes):
            tail = (self.run_dir / OUTPUT).read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join([f"agents ended with {codes}; the end of it:", *tail]))


@contextmanager
def started(
    job: Job, starter: Starter, run_dir: Path, extra: Mapping[str, str]
) -> Iterator[Running]:
    """Starts a job; none of its processes is left afterwards.

    Args:
        run_dir: a new folder.
        extra: environment variables besides this process's own.
    """
    run_dir.mkdir(parents=True)
    port = free_port()
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **extra}
    agents: list[subprocess.Popen[bytes]] = []
    with (run_dir / OUTPUT).open("wb") as output:
        running = Running(agents, run_dir)
        try:
            for node in range(job.num_nodes):
                words = job.command(starter, node, port, run_dir)
                agents.append(subprocess.Popen(words, stdout=output, stderr=output, env=environ))
            yield running
        finally:
            # The whole tree, listed while the agents still live: their orphans could not be found.
            end(running.processes())
            for agent in agents:
                agent.wait()


def end(processes: Sequence[psutil.Process], patience_s: float = 10.0) -> None:
    """Stops the processes, by force where asking does not help."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, processes = psutil.wait_procs(processes, timeout=patience_s)


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
