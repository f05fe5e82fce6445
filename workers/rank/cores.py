"""The cores and threads of a rank."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.hardware import apply_layout, rank_layouts, read_cpus
from bundlerun.launcher.layout.loaders import NodeCores
from bundlerun.launcher.layout.machine.gpu_places import gpu_numa_nodes
from bundlerun.workers.device.accelerator import unused_kind
from bundlerun.workers.rank.env import RankEnv

log = logging.getLogger(__name__)


def take_cores(config: TrainConfig, env: RankEnv) -> RankEnv:
    """Gives this rank its threads and its share of the cores."""
    cpus = read_cpus()
    layouts = rank_layouts(
        env.local_world_size,
        cpus,
        threads=config.threads,
        affinity=config.affinity and env.is_launched,
        environ=os.environ,
        gpu_nodes=gpu_numa_nodes(os.environ),
    )
    if not env.planned_bundles and env.local_rank == 0 and (kind := unused_kind()):
        log.warning("bundlerun does not use devices of the kind %r: this is the CPU", kind)
    cores = NodeCores(num_cores=cpus.num_cores, shares=tuple(layout.cpus for layout in layouts))
    if not apply_layout(layouts[env.local_rank]):
        cores = replace(cores, shares=())
        if env.local_rank == 0:
            log.warning(
                "node %s: ranks of another agent of yours are pinned to CPUs that its ranks would "
                "be: these are not pinned (--no-affinity says so from the start)",
                env.node_name,
            )
    return replace(env, cores=cores)
