"""Makes a forked process of a test one that a launcher has started, and a group of it.

The group meets in a file: a server that one of the ranks has would be gone for the others once that
rank has ended, and another program may take the port that was free.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch._dynamo  # noqa: F401 (DistributedDataParallel loads it, seconds in each rank)
import torch.distributed as dist
from torch.distributed import PrefixStore, Store

from benchmarks.cluster.forked import launcher_variables
from bundlerun.workers.rank.env import RankEnv

LIMIT = timedelta(seconds=60)


def launched(env: RankEnv, store: Store) -> None:
    """Sets what a launcher would have set for this process, and makes its process group.

    Args:
        env: its place.
        store: of the test; a file.
    """
    os.environ.update(launcher_variables(env))
    own = PrefixStore("launched", store)
    own.set_timeout(LIMIT)
    dist.init_process_group("gloo", store=own, rank=env.rank, world_size=env.world_size)
