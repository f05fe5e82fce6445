"""`bundlerun run` as a person would type it, of which a case reads the files and the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.cluster.waiting import comes_true
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runner import ROOT
from bundlerun.launcher.process import die_with_parent
from bundlerun.launcher.run_folder.events import EventName, name_of, read_events
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths

_POLL_S = 0.005
_STATUS_S = 30.0
SMALL_MODEL = f"{ROOT / 'benchmarks' / 'workload' / 'small_cnn.py'}:build"
SMALL = (
    f"--model={SMALL_MODEL}",
    "--image-size=16",
    "--augment=none",
    "--batch-size=32",
    "--microbatch-size=4",
    "--synthetic-samples=640",
    "--seed=1",
    "--no-validate",
)
"""A model with which only what is around it takes time."""


class Job:
    """One run, started at once; it ends with this process at the latest.

    Args:
        bench: gives the folders and the kind of device.
        name: of the run folder, new.
        options: what is trained, and how.
        num_ranks: of the one node.
        environ: changes to the environment.
        devices: options for the devices; None: what the bench measures on.
        data: what is trained on.
    """

    def __init__(
        self,
        bench: Bench,
        name: str,
        options: Sequence[str],
        *,
        num_ranks: int = 1,
        environ: Mapping[str, str] | None = None,
        devices: Sequence[str] | None = None,
        data: str = "synthetic",
    ) -> None:
        self.paths = RunPaths(bench.disk / name)
        self._output = bench.disk / f"{name}.txt"
        if devices is None:
            devices = () if bench.is_gpu else ("--devices=cpu", f"--slots={num_ranks}")
        words = [
            *(sys.executable, "-m", "bundlerun", "run", f"--nproc-per-node={num_ranks}"),
            *(f"--run-dir={self.paths.root}", f"--snapshot-dir={bench.memory}"),
            *devices,
            *options,
            data,
        ]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    @property
    def output(self) -> str:
        """What it has printed, for a person."""
        return self._output.read_text(errors="replace")

    def wait(self, limit_s: float) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it has none within the limit; the message has its last lines.
        """
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired as exc:
            raise TimeoutError(f"still running after {limit_s:g} s:\n{self._last()}") from exc
        if code:
            # Into the log of the cases.
            print(f"{self.paths.root.name}: code {code}\n{self._last()}", flush=True)
        return code

    def succeed(self, limit_s: float) -> None:
        """Waits for a good end.

        Raises:
            RuntimeError: it ended badly; the message has its last lines.
            TimeoutError: it did not end.
        """
        code = self.wait(limit_s)
        if code:
            raise RuntimeError(f"ended with code {code}:\n{self._last()}")

    def steps(self) -> list[dict[str, Any]]:
        """The rows of its history that tell of steps."""
        return [row for row in read_rows(self.paths.metrics) if row.get("kind") == "step"]

    def losses(self) -> list[float]:
        """The loss of each step."""
        return [float(row["loss"]) for row in self.steps()]

    def wait_for_step(self, step: int, limit_s: float) -> float:
        """When the step was in the history, by the wall clock, seconds.

        Raises:
            TimeoutError: it is not within the limit.
        """
        found: list[float] = []

        def is_there() -> bool:
            found[:] = [float(row["time"]) for row in self.steps() if int(row["step"]) >= step]
            return bool(found) or self._process.poll() is not None

        if not comes_true(is_there, limit_s, _POLL_S) or not found:
            raise TimeoutError(f"no step {step} within {limit_s:g} s:\n{self._last()}")
        return found[0]

    def rank_pid(self, local_rank: int) -> int:
        """The process of a rank that was started last."""
        return int(
            [row for row in self.events("starts") if row["local_rank"] == local_rank][-1]["pid"]
        )

    def last_recovery(self) -> dict[str, float]:
        """Seconds from the first sign of the last fault to each step of the recovery."""
        words = [sys.executable, "-m", "bundlerun", "status", "--json", str(self.paths.root)]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, timeout=_STATUS_S)
        found = json.loads(done.stdout)["recoveries"]
        return dict(found[-1]["phases"]) if found else {}

    def stop(self, limit_s: float) -> int:
        """Asks it to stop in good order, and waits; its exit code."""
        self._process.terminate()
        return self.wait(limit_s)

    def events(self, name: EventName) -> list[dict[str, Any]]:
        """The events of one kind, by time."""
        return [row for row in read_events(self.paths.events) if name_of(row) == name]

    def _last(self) -> str:
        return "\n".join(self.output.splitlines()[-15:])
