"""Jobs on a Slurm of this machine, as a user submits them, and what is to be seen of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cluster.slurm_cluster import Cluster
from benchmarks.cluster.waiting import comes_true
from bundlerun.launcher.agreement.continuation import newest_step
from bundlerun.launcher.run_folder.events import EventName, name_of, read_events
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.jobs import Job, job_from_text

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "slurm"
LIMIT_S = 150.0
LATE_WORD_S = 2.0
"""How late the word of a script's end may come, seconds; Slurm's own delay is two minutes."""
NUM_STEPS = 60
SMALL = ("--gpus-per-node=2", "--mincpus=2", "--time=10")
"""What a job of the tests asks of each node."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a fault cost.

    seconds: to the next finished step. requeued_s: to the requeue, where there was one.
    started_s: to the next start of the job, which the site's settings decide.
    """

    case: str
    seconds: float
    steps_lost: int
    requeued_s: float | None = None
    started_s: float | None = None

    def __str__(self) -> str:
        text = f"{self.case:36} {self.seconds:6.1f} s  {self.steps_lost} steps lost"
        if self.requeued_s is None or self.started_s is None:
            return text
        return f"{text}  (requeued after {self.requeued_s:.1f} s, started {self.started_s:.1f} s)"


def train_words(**changes: object) -> list[str]:
    """A small run whose steps take some 0.1 s."""
    options: dict[str, object] = {
        "model": f"{ROOT / 'benchmarks/workload/slow_model.py'}:build",
        "cut": "second",
        "shape": "1,1",
        "image-size": 8,
        "augment": "none",
        "synthetic-samples": 20 * NUM_STEPS // 2,
        "batch-size": 20,
        "microbatch-size": 5,
        "epochs": 2,
        "lr": 0.1,
        "threads": 1,
        "timeout-s": 60,
        "sync": "local-master",
        "snapshot-steps": 1,
    }
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [*(f"--{name}={value}" for name, value in options.items()), "synthetic"]


@dataclass(slots=True)
class Submitted:
    """One job."""

    cluster: Cluster
    job_id: str
    run_dir: Path
    log: Path
    recoveries: list[Recovery]
    requeued_s: tuple[float, float] | None = None
    limit_s: float = LIMIT_S

    @property
    def paths(self) -> RunPaths:
        """Of the run."""
        return RunPaths(self.run_dir)

    def show(self) -> Job:
        """What Slurm says of the job."""
        job = job_from_text(self.cluster.run("scontrol", "-o", "show", "job", self.job_id))
        assert job is not None
        return job

    @property
    def exit_code(self) -> str:
        """CODE:SIGNAL."""
        text = self.cluster.run("scontrol", "-o", "show", "job", self.job_id)
        return text.split("ExitCode=")[1].split()[0]

    def output(self) -> str:
        """The job's log."""
        return self.log.read_text() if self.log.exists() else ""

    def story(self) -> str:
        """All that helps to see what went wrong."""
        events = "\n".join(map(json.dumps, self.events()))
        agents = "\n".join(
            f"{file.parent.name}: {file.read_text()[-1500:]}"
            for file in sorted(self.paths.logs.glob("*/agent.log"))
        )
        return f"{self.show()}\n{self.output()}\n{events}\n{agents}"

    def wait(self, what: str, check: Callable[[], object]) -> None:
        """Waits until `check` holds.

        Raises:
            TimeoutError: with the job's story.
        """
        if not comes_true(check, self.limit_s, 0.1):
            raise TimeoutError(f"no {what} in {self.limit_s:.0f} s\n{self.story()}")

    def wait_over(self) -> str:
        """Waits for the end and returns the state."""
        self.wait("end", lambda: self.show().is_over)
        return self.show().state

    def wait_requeued(self, restarts: int = 1) -> None:
        """Waits for a requeue and for the next start."""
        begun = time.monotonic()
        self.wait("requeue", lambda: self.show().restarts >= restarts)
        asked_s = time.monotonic() - begun
        self.wait("end of the last start", lambda: self.show().state != "COMPLETING")
        # One that is started at once fails by the last script's exit code, if that comes late.
        time.sleep(LATE_WORD_S)
        self.wait("next start", self._is_started)
        self.requeued_s = (asked_s, time.monotonic() - begun)

    def _is_started(self) -> bool:
        """Whether the job runs; spares it the two minutes of waiting after a requeue."""
        job = self.show()
        if job.state == "PENDING" and job.reason == "BeginTime":
            update = ("scontrol", "update", f"jobid={self.job_id}", "StartTime=now")
            self.cluster.run(*update, check=False)
            time.sleep(1.0)
        return job.state == "RUNNING"

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Of the run's history, of one kind."""
        return [row for row in read_rows(self.paths.metrics) if row.get("kind") == kind]

    def events(self, name: EventName | None = None) -> list[dict[str, Any]]:
        """Of all nodes, of one name or all."""
        found = read_events(self.paths.events)
        return [row for row in found if name is None or name_of(row) == name]

    def step(self) -> int:
        """How far the run is."""
        return newest_step(self.paths)

    def wait_step(self, step: int) -> None:
        """Waits until the run is so far."""
        self.wait(f"step {step}", lambda: self.step() >= step)

    @contextmanager
    def fault(self, case: str) -> Iterator[None]:
        """The body does something to the job; waits until it has recovered, and notes the time.

        A step that nobody else had yet when the fault came is done again: it was not finished.
        """
        self.requeued_s = None
        restarts, before, begun = len(self.rows("restart")), self.step(), time.monotonic()
        yield
        if self.requeued_s:  # before that the survivors may have recovered, too
            restarts = len(self.rows("restart"))
        self.wait("recovery", lambda: len(self.rows("restart")) > restarts)
        back = int(self.rows("restart")[-1]["step"])
        self.wait_step(back + 1)
        taken_s = time.monotonic() - begun
        # What ranks said as they stopped may be newer than the history before the fault.
        reached = max([before - 1, *(int(row["step"]) for row in self.events("stops"))])
        self.recoveries.append(
            Recovery(case, taken_s, max(0, reached - back), *(self.requeued_s or ()))
        )

    def leaves_nothing(self) -> None:
        """Waits until no process of a job is left on any node."""
        for node in self.cluster.names:
            self.wait(f"end on {node}", partial(self._is_free, node))

    def _is_free(self, node: str) -> bool:
        return not self.cluster.processes(node)

    def summary(self) -> dict[str, Any]:
        """The run's result."""
        found: dict[str, Any] = json.loads(self.paths.summary.read_text())
        return found


@dataclass(slots=True)
class Jobs:
    """Submits jobs whose files are in `folder`.

    Args:
        recoveries: what their faults cost.
    """

    cluster: Cluster
    folder: Path
    recoveries: list[Recovery] = field(default_factory=list)

    def submit(
        self,
        words: Sequence[str],
        *sbatch: str,
        script: Path | str = SCRIPTS / "bundle.sbatch",
        name: str = "run",
        **settings: object,
    ) -> Submitted:
        """Submits a script, given as a file or as text."""
        run_dir, log = self.folder / name, self.folder / f"{name}.out"
        if isinstance(script, str):
            file = self.folder / f"{name}.sbatch"
            file.write_text(script)
        else:
            file = script
        exported = {"RUN_DIR": run_dir, "PYTHON": sys.executable} | settings
        run_dir = Path(str(exported["RUN_DIR"]))
        job_id = self.cluster.run(
            "sbatch",
            "--parsable",
            f"--chdir={self.folder}",
            f"--output={log}",
            "--export=ALL," + ",".join(f"{key}={value}" for key, value in exported.items()),
            *sbatch,
            str(file),
            *words,
        ).strip()
        return Submitted(self.cluster, job_id, run_dir, log, self.recoveries)
