"""What the first start of a run settles, and all later ones keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.arrival.session import arrive
from bundlerun.workers.rank.env import RankEnv
from tests.ranks.harness import run_ranks


def test_the_size_of_a_microbatch_outlives_the_nodes_that_settled_it(tmp_path: Path) -> None:
    config = TrainConfig(data="synthetic", run_dir=str(tmp_path / "run"))

    def samples(nodes: tuple[int, ...], config: TrainConfig, planned: int = 0) -> int:
        def main(env: RankEnv, store: Store) -> None:
            arrival = arrive(config, replace(env, planned_bundles=planned), store)
            (tmp_path / str(env.rank)).write_text(str(arrival.samples_per_microbatch))

        run_ranks(nodes, main, tmp_path)
        found = {(tmp_path / str(rank)).read_text() for rank in range(sum(nodes))}
        assert len(found) == 1
        return int(found.pop())

    assert samples((2,), config) == 32
    assert samples((4, 2), config) == 32  # a late joiner, another size, a new start
    assert samples((2,), replace(config, microbatch_size=16)) == 16
    RunPaths(Path(config.run_dir)).microbatch.unlink()
    assert samples((2,), config, planned=4) == 8  # others are to come
    assert samples((2,), config) == 8
