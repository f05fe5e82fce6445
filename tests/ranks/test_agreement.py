"""Nodes that do not fit together, where no rendezvous of ours has compared them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import Store

from launcher.config import TrainConfig
from launcher.errors import ConfigError
from tests.ranks.harness import run_ranks
from workers.env import RankEnv
from workers.session import arrive


def test_all_ranks_of_nodes_that_differ_say_which_option_it_is(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        config = TrainConfig(data="synthetic", shape=(1,), seed=env.node // 2, threads=env.node)
        with pytest.raises(ConfigError, match=r"--seed is 0 on node0, node1 and 1 on node2; give"):
            arrive(config, env, store)

    run_ranks((1, 2, 1), main, tmp_path)


def test_nodes_that_agree_meet_where_nobody_says_how_many_they_are(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        config = TrainConfig(data="synthetic", shape=(1,), threads=env.node)
        arrival = arrive(config, replace(env, num_nodes=0), store)
        assert arrival.topology.devices_per_node == (2, 1)

    run_ranks((2, 1), main, tmp_path)
