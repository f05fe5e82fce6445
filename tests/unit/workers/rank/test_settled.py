"""The first rank settles the size of micro-batches, all others and all later starts have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch._C._distributed_c10d import HashStore

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.settled import settled_samples

FIRST = RankEnv.from_mapping({})


@pytest.mark.parametrize(("has_gpus", "samples"), [(False, 32), (True, 128)])
def test_all_ranks_have_what_the_first_settles(
    has_gpus: bool, samples: int, tmp_path: Path
) -> None:
    config = TrainConfig(data="x", shape=Shape((1,)), run_dir=str(tmp_path))
    store = HashStore()
    assert settled_samples(config, FIRST, store, 1, has_gpus=has_gpus) == samples
    # Whatever it would say itself.
    other = replace(FIRST, rank=1)
    assert settled_samples(config, other, store, 1, has_gpus=not has_gpus) == samples
    later = HashStore()
    assert settled_samples(config, FIRST, later, 8, has_gpus=not has_gpus) == samples


def test_what_is_asked_for_is_taken(tmp_path: Path) -> None:
    config = TrainConfig(data="x", microbatch_size=8, run_dir=str(tmp_path))
    assert settled_samples(config, FIRST, HashStore(), 1, has_gpus=True) == 8
    assert not list(tmp_path.iterdir())
