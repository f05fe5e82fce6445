"""What the first rank of a run settles for all ranks, and for all later starts."""

from __future__ import annotations

from pathlib import Path

from torch._C._distributed_c10d import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.microbatch import default_samples
from bundlerun.launcher.run_folder.microbatch import keep_samples, kept_samples
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv

_SAMPLES = "samples"


def settled_samples(
    config: TrainConfig, env: RankEnv, store: Store, num_bundles: int, *, has_gpus: bool
) -> int:
    """Samples of a micro-batch, settled at the first start of the run; the same on all ranks.

    Collective: every rank.
    """
    if config.microbatch_size:
        return config.microbatch_size
    # From the store, so that all ranks have what the first one has settled.
    if env.rank != 0:
        return int(store.get(_SAMPLES))
    paths = RunPaths(Path(config.run_dir))
    kept = kept_samples(config.run_dir, config.batch_size)
    # A first round may begin before all nodes are there, and the size is for the whole run.
    num_bundles = max(num_bundles, env.planned_bundles)
    samples = kept or default_samples(
        config.batch_size, config.shape.num_stages, num_bundles, has_gpus=has_gpus
    )
    store.set(_SAMPLES, str(samples))
    if not kept:
        keep_samples(paths, config.batch_size, samples)
    return samples
