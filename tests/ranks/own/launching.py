"""Makes a forked process of a test one that a launcher has started."""

from __future__ import annotations

import os
from dataclasses import replace

import torch._dynamo  # noqa: F401 (DistributedDataParallel loads it, seconds in each rank)
import torch.distributed as dist

from benchmarks.cluster.forked import launcher_variables
from bundlerun.workers.rank.env import RankEnv


def launched(env: RankEnv, port: int) -> None:
    """Sets what a launcher would have set for this process."""
    os.environ.update(launcher_variables(replace(env, master_port=port)))
    dist.init_process_group("gloo")
