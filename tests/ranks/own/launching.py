"""Makes a forked process of a test one that a launcher has started."""

from __future__ import annotations

import os

import torch._dynamo  # noqa: F401 (DistributedDataParallel loads it, seconds in each rank)
import torch.distributed as dist

from bundlerun.workers.rank.env import RankEnv


def launched(env: RankEnv, port: int) -> None:
    """Sets what a launcher would have set for this process."""
    numbers = {
        "RANK": env.rank,
        "WORLD_SIZE": env.world_size,
        "LOCAL_RANK": env.local_rank,
        "LOCAL_WORLD_SIZE": env.local_world_size,
        "GROUP_RANK": env.node,
        "GROUP_WORLD_SIZE": env.num_nodes,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "BUNDLERUN_NODE_NAME": env.node_name}
    dist.init_process_group("gloo")
