"""Programs whose process group is their own: what the library makes of it where nobody has said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch._dynamo  # (DistributedDataParallel loads it, seconds in each rank)
import torch.distributed as dist
from torch import nn
from torch.distributed import Store
from torch.nn.functional import cross_entropy

from bundlerun import Bundle, Protection, protect
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.own.process.joined import read_env
from bundlerun.workers.own.process.user_group import _variables
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import free_port, run_ranks

_WORDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def small(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def join(env: RankEnv, port: int) -> None:
    """The program's own group. Its store ends with rank 0, which must outlast the others' words."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=env.rank, world_size=env.world_size)


def test_ranks_of_a_program_by_itself_are_one_job(tmp_path: Path) -> None:
    """As under mp.spawn: nothing is in the environment, and the group knows."""
    port = free_port()

    def main(env: RankEnv, _: Store) -> None:
        for name in _WORDS:
            os.environ.pop(name, None)
        join(env, port)
        found = read_env()
        assert (found.rank, found.world_size, found.is_launched) == (env.rank, 2, True)
        assert (found.local_rank, found.local_world_size) == (env.rank, 2)
        assert (found.node, found.num_nodes, found.master_port) == (0, 1, port)

        model = small(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kept = Protection(snapshot_steps=1)
        with protect(model, optimizer, run_dir=tmp_path / "run", protection=kept) as run:
            assert [*run.steps(2)] == [0, 1]  # the second rank is in the first one's folder
        inputs, targets = torch.ones(4, 4), torch.tensor([0, 1, 2, 0])
        with Bundle.of(small(8), cross_entropy, inputs[:2], batch_size=4) as bundle:
            assert bundle.count == 1
            assert bundle.is_first == (env.rank == 0)
            bundle.step(inputs, targets)

        # What a launcher says of the node, and not of this rank, is less than the group's word.
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
        assert read_env().rank == env.rank
        os.environ["TORCHELASTIC_RUN_ID"] = "job"
        with pytest.raises(ConfigError, match="torchrun says that this is rank 0 of 1, and the pr"):
            read_env()
        dist.barrier()

    run_ranks((2,), main, tmp_path)


def test_ranks_that_have_made_different_models_say_so(tmp_path: Path) -> None:
    port = free_port()

    def main(env: RankEnv, _: Store) -> None:
        join(env, port)
        text = r"0.weight of stage 0 is \(8, 4\) float32 on rank 0 on \S+ and \(9, 4\) float32 on r"
        with pytest.raises(ConfigError, match=text):
            Bundle.of(small(8 + env.rank), cross_entropy, torch.ones(2, 4), batch_size=4)
        dist.barrier()

    run_ranks((2,), main, tmp_path)


@pytest.mark.parametrize(
    ("machines", "local", "node"),
    [
        ("aabb", ("1", "2"), ("1", "2")),
        ("aaab", ("0", "1"), ("1", "2")),
        ("bbbb", ("3", "4"), "01"),
    ],
)
def test_nodes_are_told_by_the_machines_of_the_ranks(
    machines: str, local: Sequence[str], node: Sequence[str]
) -> None:
    found = _variables(3, list(machines), ("host", "1"))
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == tuple(local)
    assert (found["GROUP_RANK"], found["GROUP_WORLD_SIZE"]) == tuple(node)


def test_ranks_of_nodes_in_turn_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"on the nodes \[0, 1, 0, 1\]: those of one node must"):
        _variables(1, list("abab"), ("host", "1"))
