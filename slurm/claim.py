"""Whose the run folder is: one job's at a time, and the same folder on every node."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.jobs import Slurm

SETTLE_S = 0.5
"""Two jobs that claim at once: each looks again after this time, and the last one has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is in the run folder; `nonce` tells the starts of a job apart."""

    job_id: int
    nonce: str


def read_claim(paths: RunPaths) -> Claim | None:
    """The claim in a run folder; None without a legible one."""
    try:
        body = json.loads(paths.slurm_job.read_text(encoding="utf-8"))
        return Claim(job_id=int(body["job_id"]), nonce=str(body["nonce"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_free(paths: RunPaths, job_id: int | None, slurm: Slurm) -> None:
    """Raises ConfigError where another job that is not over has the run folder.

    Args:
        job_id: of the asking job; None where it has none yet.
    """
    # A claim needs no release: it ends with its job, whatever way that goes.
    claim = read_claim(paths)
    if claim is None or claim.job_id == job_id:
        return
    other = slurm.job(claim.job_id)
    if other is not None and not other.is_over:
        raise ConfigError(
            f"run folder {str(paths.root)!r} is in use by job {other.job_id} ({other.state}); give "
            f"another --run-dir, or scancel {other.job_id} first"
        )


def take(
    paths: RunPaths, job_id: int, slurm: Slurm, *, sleep: Callable[[float], None] = time.sleep
) -> Claim:
    """Claims the run folder for a job.

    Raises:
        ConfigError: it is another job's.
        NodeError: it cannot be written.
    """
    check_free(paths, job_id, slurm)
    claim = Claim(job_id=job_id, nonce=os.urandom(8).hex())
    try:
        write_text(paths.slurm_job, json.dumps(asdict(claim)))
    except OSError as exc:
        raise NodeError(
            f"cannot write to --run-dir {str(paths.root)!r}: {exc.strerror}; give another"
        ) from exc
    # Two that passed the first check at once have both written; only the last claim is still there.
    sleep(SETTLE_S)
    check_free(paths, job_id, slurm)
    return claim


def check_shared(root: Path, nonce: str, node: str, *, wait_s: float = 10.0) -> None:
    """Raises NodeError where the run folder of this node is not that of the job's first node.

    Args:
        nonce: what the first node wrote there.
        wait_s: how long a shared file system may take to show it, seconds.
    """
    deadline = time.monotonic() + wait_s
    while True:
        # The nonce, not the job's number: a folder that is local to each node may keep the claim of
        # an earlier start of the same job.
        claim = read_claim(RunPaths(root))
        if claim is not None and claim.nonce == nonce:
            return
        if time.monotonic() >= deadline:
            raise NodeError(
                f"run folder {str(root)!r} on node {node!r} is not the one that the job's first "
                "node writes to; give a --run-dir on a file system that all nodes share"
            )
        time.sleep(0.2)
