"""What a rank reads from the environment that its launcher made."""

from __future__ import annotations

import socket

import pytest

from bundlerun.workers.rank.env import RankEnv

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "2",
    "GROUP_WORLD_SIZE": "3",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_x/none_y/attempt_0/1/error.json",
}


def test_torchruns_variables_are_read() -> None:
    env = RankEnv.from_mapping(TORCHRUN)
    assert (env.rank, env.local_rank, env.node, env.num_nodes) == (5, 1, 2, 3)


def test_a_virtual_local_rank_does_not_make_two_ranks_one() -> None:
    env = RankEnv.from_mapping({**TORCHRUN, "LOCAL_RANK": "0"})
    assert env.local_rank == 1


def test_without_an_agent_of_torch_the_local_rank_is_as_it_says() -> None:
    environ = {**TORCHRUN, "LOCAL_RANK": "0"}
    del environ["TORCHELASTIC_ERROR_FILE"]
    env = RankEnv.from_mapping(environ)
    assert env.local_rank == 0


@pytest.mark.parametrize(
    ("told", "site"),
    [
        ({}, socket.gethostname()),
        (
            {
                "SLURM_TOPOLOGY_ADDR": "spine.leaf3.node-a",
                "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.switch.node",
            },
            "spine.leaf3",
        ),
        (
            {"SLURM_TOPOLOGY_ADDR": "node-a", "SLURM_TOPOLOGY_ADDR_PATTERN": "node"},
            socket.gethostname(),
        ),
    ],
    ids=["nobody tells", "Slurm's tree", "Slurm without one"],
)
def test_nodes_below_one_switch_are_of_one_site(told: dict[str, str], site: str) -> None:
    assert RankEnv.from_mapping({**TORCHRUN, **told}).site == site
