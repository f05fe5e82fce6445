"""Launchers of which a test needs no more than what they say: two ranks with their variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.launchers.test_launchers import (
    FOREIGN,
    LIMIT_S,
    OPTIONS,
    check_both_doors,
    check_trained,
    free_port,
)
from tests.warm import ROOT, Warm

Said = Callable[[int, str], Mapping[str, str]]
"""By the number of a process of two, and a port that is free."""


def said_by_kubeflow(rank: int, port: str) -> Mapping[str, str]:
    """Its operator, in each of two pods."""
    own = {"RANK": f"{rank}", "WORLD_SIZE": "2", "PET_NODE_RANK": f"{rank}", "PET_NNODES": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PET_NPROC_PER_NODE": "auto"}
    return {**own, **meeting, "PET_MASTER_ADDR": "127.0.0.1", "BUNDLERUN_NODE_NAME": f"pod-{rank}"}


def said_by_srun(rank: int, port: str) -> Mapping[str, str]:
    """`srun -N1 -n2`; the port is told by the number of the job."""
    job = {"SLURM_JOB_ID": port, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    nodes = {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}
    task = {"SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}", "SLURM_STEP_NUM_NODES": "1"}
    return {**job, **step, **nodes, **task, "SLURMD_NODENAME": "localhost"}


def said_by_mpich(rank: int, port: str) -> Mapping[str, str]:
    """Intel's mpiexec; where all meet is the user's to say."""
    own = {"PMI_RANK": f"{rank}", "PMI_SIZE": "2", "MPI_LOCALRANKID": f"{rank}"}
    return {**own, "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


SAID: dict[str, Said] = {
    "kubeflow": said_by_kubeflow,
    "srun": said_by_srun,
    "mpich": said_by_mpich,
}


def run_two(warm: Warm, said: Said, words: list[str], folder: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    environ["PYTHONPATH"] = str(ROOT)
    port, log = free_port(), folder / "log"
    with log.open("ab") as file:
        ranks = [
            warm.start(
                [sys.executable, *words, f"--run-dir={folder / 'run'}"],
                stdout=file, stderr=file, env={**environ, **said(rank, port)},
            )
            for rank in range(2)
        ]  # fmt: skip
    try:
        assert [rank.wait(LIMIT_S) for rank in ranks] == [0, 0], log.read_text()
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.parametrize("launcher", SAID)
def test_the_worker_is_one_of_two_ranks(launcher: str, warm: Warm, tmp_path: Path) -> None:
    run_two(
        warm, SAID[launcher], ["-m", "bundlerun.workers.train", *OPTIONS, "synthetic"], tmp_path
    )
    check_trained(tmp_path, 2)


@pytest.mark.parametrize("launcher", SAID)
def test_a_loop_of_ones_own_is_one_of_two_ranks(launcher: str, warm: Warm, tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("own_loop.py"))
    run_two(warm, SAID[launcher], [program], tmp_path)
    check_both_doors(tmp_path)
