"""What Slurm says of a process, as a task of a job step."""

from __future__ import annotations

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.slurm.task import FIRST_PORT, NUM_PORTS, SlurmTask, expand_hostlist

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-4]",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
    "SLURMD_NODENAME": "n2",
}


def task(**changes: str) -> SlurmTask:
    found = SlurmTask.from_environ(STEP | changes)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[01-03,7]", ["n01", "n02", "n03", "n7"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("a1,b[2,4]", ["a1", "b2", "b4"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
        ("n[1-2]-ib,gpu-a", ["n1-ib", "n2-ib", "gpu-a"]),
    ],
)
def test_a_node_list_is_expanded(text: str, names: list[str]) -> None:
    assert list(expand_hostlist(text)) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n[a-b]", "n]1[", "n[1--3]"])
def test_a_node_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="node list"):
        expand_hostlist(text)


def test_jobs_and_steps_that_share_a_node_have_ports_of_their_own() -> None:
    ports = [
        task(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step)).port
        for job in range(100, 130)
        for step in range(4)
    ]
    assert len(set(ports)) == len(ports)
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS for port in ports)


def test_a_variable_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_ID='x'"):
        task(SLURM_JOB_ID="x")
