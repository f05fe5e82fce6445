"""How the job of a run stands, for `bundlerun status`, and which run folder a job has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from bundlerun.launcher.errors import BundleError, ConfigError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.claim import read_claim
from bundlerun.slurm.jobs import Job, Slurm

WAITS = {
    "BeginTime": "Slurm starts a requeued job some two minutes later",
    "Dependency": "another job has to end first",
    "JobHeldAdmin": "an operator holds it: scontrol release",
    "JobHeldUser": "it is held: scontrol release",
    "Priority": "jobs of higher priority are first",
    "Resources": "for nodes to become free",
}
"""What Slurm's reasons mean; others are told in its own word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The job that has a run folder.

    waits_for: why it is not running, empty where it is. start: when it started or is to start.
    """

    job_id: int
    state: str
    requeues: int
    nodes: str
    start: str
    waits_for: str

    def __str__(self) -> str:
        text = f"{self.job_id}, {self.state}, {self.requeues} requeues"
        if self.nodes:
            text += f", on {self.nodes}"
        if self.waits_for:
            text += f"; waits: {self.waits_for}"
            text += f", start {self.start}" if self.start else ""
        return text


def report_of(job: Job) -> Report:
    """The report on a job."""
    reason = job.reason if job.state == "PENDING" else ""
    return Report(
        job_id=job.job_id,
        state=job.state,
        requeues=job.restarts,
        nodes=job.nodes,
        start=job.start,
        waits_for=f"{reason} ({WAITS[reason]})" if reason in WAITS else reason,
    )


def report(root: Path, slurm: Slurm | None = None) -> dict[str, object] | None:
    """The report on the job of a run folder, as plain values with its `text`; None without one."""
    claim = read_claim(RunPaths(root))
    if claim is None:
        return None
    try:
        job = (slurm or Slurm()).job(claim.job_id)
    except BundleError as exc:
        return {"job_id": claim.job_id, "text": f"{claim.job_id}; {exc}"}
    if job is None:
        return {"job_id": claim.job_id, "text": f"{claim.job_id}, which Slurm has forgotten"}
    found = report_of(job)
    return {**asdict(found), "text": str(found)}


def run_dir_of_job(job_id: int, slurm: Slurm | None = None) -> Path:
    """The run folder of a job.

    Raises:
        ConfigError: it is none of ours, or has not begun.
        NodeError: Slurm does not answer.
    """
    job = (slurm or Slurm()).job(job_id)
    if job is None:
        raise ConfigError(f"there is no job {job_id}; give its run folder")
    if not job.run_dir:
        raise ConfigError(f"job {job_id} ({job.state}) tells no run folder; give that")
    return Path(job.run_dir)
