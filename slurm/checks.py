"""What can be known to fail before a job waits in the queue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.run_folder.history import read_last_rows
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.claim import check_free
from bundlerun.slurm.jobs import TAG, Slurm, seconds_of
from bundlerun.slurm.request import Request, limit_seconds

SHORT_KILL_WAIT_S = 30
"""Slurm's default."""
_TAIL_BYTES = 65536


def check_devices(request: Request, train: TrainConfig, launch: LaunchConfig) -> None:
    """Raises ConfigError where the nodes asked for hold no bundle."""
    per_node = request.gpus_per_node or launch.slots
    if not per_node:
        raise ConfigError(
            "--gpus-per-node is missing; for nodes without GPUs give --devices cpu --slots N "
            "after --"
        )
    size, least = train.shape.size, request.nodes[0]
    if per_node * least < size:
        raise ConfigError(
            f"{least} nodes of {per_node} devices do not hold one bundle of shape "
            f"{train.shape} ({size} devices); give more --gpus-per-node or "
            "--nodes, or a smaller --shape"
        )


def check_interval(request: Request, train: TrainConfig, paths: RunPaths) -> None:
    """Raises ConfigError where an earlier start of the run shows that the time limit is too short.

    A job that ends before its first checkpoint would begin again for ever.
    """
    step_s = seconds_per_step(paths)
    if not (request.time and train.checkpoint_steps and step_s):
        return
    limit, interval = limit_seconds(request.time), train.checkpoint_steps * step_s
    if limit <= interval:
        raise ConfigError(
            f"--time {request.time} ({limit} s) is shorter than --checkpoint-steps "
            f"{train.checkpoint_steps} of {step_s:.2g} s each; give a longer one, or fewer steps"
        )


def seconds_per_step(paths: RunPaths) -> float:
    """How long a step took when this run was last seen, seconds; 0 where nobody knows."""
    steps = [row for row in read_last_rows(paths.metrics, _TAIL_BYTES) if row.get("kind") == "step"]
    # One row has the time of an end only; a step's length takes two.
    if len(steps) < 2:
        return 0.0
    (first_s, first), (last_s, last) = ((row["time"], row["step"]) for row in steps[-2:])
    return float((last_s - first_s) / (last - first)) if last > first else 0.0


def check_queue(run_dir: Path, slurm: Slurm) -> None:
    """Raises ConfigError where a job in the queue has the run folder."""
    # A job that runs has a claim in the folder; one that waits is known by its comment only.
    check_free(RunPaths(run_dir), None, slurm)
    for line in slurm.run(["squeue", "--me", "--noheader", "--format=%i|%T|%k"], "").splitlines():
        # Two more fields than needed, as a job without a comment may have fewer.
        job_id, state, comment = [*line.split("|", 2), "", ""][:3]
        if comment.strip() == f"{TAG}{run_dir}":
            raise ConfigError(
                f"run folder {str(run_dir)!r} is in use by job {job_id} ({state}); give another "
                f"--run-dir, or scancel {job_id} first"
            )


def site_notes(config: Mapping[str, str]) -> Iterator[str]:
    """What of the site's settings a user should know."""
    mode = config.get("PreemptMode", "OFF")
    if "CANCEL" in mode:
        yield f"PreemptMode={mode}: a preempted job is cancelled here; submit it again to continue"
    kill_wait = seconds_of(config, "KillWait", SHORT_KILL_WAIT_S)
    if kill_wait < SHORT_KILL_WAIT_S:
        yield (
            f"KillWait={kill_wait}: a requeue by an operator leaves {kill_wait} s for the last "
            "checkpoint"
        )
