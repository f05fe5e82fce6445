"""What Slurm knows of a job, and the few things that are asked of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bundlerun.launcher.errors import BundleError, NodeError

DEAD = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    }
)
"""States that a job does not leave by itself."""
ANSWER_S = 30.0
"""How long a command of Slurm may take, seconds; slurmctld may be busy, or starting again."""
TAG = "bundlerun: "
"""How the comment of one of our jobs begins; its run folder follows."""


class SlurmError(BundleError):
    """Slurm refused, with its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job as `scontrol show job` tells it."""

    job_id: int
    state: str
    reason: str
    restarts: int
    nodes: str
    batch_node: str
    start: str
    time_limit: str
    comment: str

    @property
    def is_over(self) -> bool:
        """Whether it will not run any more."""
        return self.state in DEAD

    @property
    def run_dir(self) -> str:
        """The run folder; empty for a job that is not ours."""
        return self.comment.removeprefix(TAG) if self.comment.startswith(TAG) else ""


Runner = Callable[[Sequence[str], str], str]
"""Runs a command with a text on its standard input, returns what it prints."""


def run_command(words: Sequence[str], text: str = "") -> str:
    """Runs one of Slurm's commands.

    Raises:
        NodeError: it is not installed, or does not answer.
        SlurmError: it refuses.
    """
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except FileNotFoundError as exc:
        raise NodeError(
            f"{words[0]} is not on the PATH: this machine has no Slurm; type this on a login node "
            "of the cluster, or load its module"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise NodeError(f"{' '.join(words)} gave no answer in {ANSWER_S:.0f} s") from exc
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise SlurmError(f"{' '.join(words)}: {said}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Slurm:
    """The commands; a test gives its own `run`."""

    run: Runner = run_command

    def job(self, job_id: int) -> Job | None:
        """The job, or None where Slurm has forgotten it.

        Raises:
            NodeError: Slurm does not answer.
        """
        try:
            return job_from_text(self.run(["scontrol", "-o", "show", "job", str(job_id)], ""))
        except SlurmError as exc:
            # Slurm forgets a job some time after its end (MinJobAge); other refusals are trouble.
            if "Invalid job id" in str(exc):
                return None
            raise NodeError(str(exc)) from exc

    def requeue(self, job_id: int, restarts: int) -> bool:
        """Has a running job start again, unless it ends, or has started again, by itself.

        Slurm would also requeue a job that is being cancelled, and one that a requeue has brought
        back already. Neither must happen.

        Args:
            restarts: how often it had been requeued when the caller's part of it began.

        Returns:
            False where that is not the running job any more.

        Raises:
            NodeError: Slurm does not answer.
            SlurmError: it refuses.
        """
        job = self.job(job_id)
        # `restarts` tells this start of the job from one that another survivor has brought about.
        if job is None or job.state != "RUNNING" or job.restarts != restarts:
            return False
        self.run(["scontrol", "requeue", str(job_id)], "")
        return True

    def tell_run_dir(self, job_id: int, run_dir: str) -> None:
        """Writes the run folder into the job's comment, where `bundlerun status JOB` finds it.

        Raises:
            BundleError: Slurm refuses.
        """
        self.run(["scontrol", "update", f"jobid={job_id}", f"comment={TAG}{run_dir}"], "")

    def config(self) -> dict[str, str]:
        """The site's settings, `scontrol show config`.

        Raises:
            BundleError: Slurm refuses, or does not answer.
        """
        return config_from_text(self.run(["scontrol", "show", "config"], ""))

    def submit(self, options: Sequence[str], script: str) -> int:
        """Submits a script, given as text, and returns the job's id.

        Raises:
            NodeError: there is no Slurm here, or it does not answer.
            SlurmError: it refuses, or answers with something else.
        """
        answer = self.run(["sbatch", "--parsable", *options], script)
        # --parsable gives ID, or ID;CLUSTER.
        match = re.match(r"(\d+)", answer)
        if not match:
            raise SlurmError(f"sbatch answered {answer.strip()!r}, which is no job id")
        return int(match[1])


def job_from_text(text: str) -> Job | None:
    """Reads `scontrol -o show job`; of several lines (an array), the first."""
    line = next(iter(text.splitlines()), "")
    found: dict[str, str] = {}
    # Values may have spaces in them: one ends where the next KEY= begins.
    for match in re.finditer(r"(\S+?)=(.*?)(?=\s+[A-Za-z][\w:/()-]*=|\s*$)", line):
        # The first of a name counts: free text, such as the comment, may have KEY= in it.
        found.setdefault(match[1], match[2])
    if not found.get("JobId", "").isdecimal():
        return None
    return Job(
        job_id=int(found["JobId"]),
        state=found.get("JobState", ""),
        reason=_known(found.get("Reason", "")),
        restarts=int(found.get("Restarts", "0")),
        nodes=_known(found.get("NodeList", "")),
        batch_node=found.get("BatchHost", ""),
        start=_known(found.get("StartTime", "")),
        time_limit=found.get("TimeLimit", ""),
        comment=found.get("Comment", ""),
    )


def _known(text: str) -> str:
    return "" if text in ("(null)", "None", "Unknown") else text


def config_from_text(text: str) -> dict[str, str]:
    """Reads `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def seconds_of(config: Mapping[str, str], key: str, default: int) -> int:
    """A time of `scontrol show config`, written as `30 sec`."""
    match = re.match(r"(\d+)", config.get(key, ""))
    return int(match[1]) if match else default
