"""Nodes that do not fit together, where no rendezvous of ours has compared them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.image_index import open_index
from bundlerun.workers.rank.arrival.session import arrive
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.training.test_parity import MODEL


def test_all_ranks_of_nodes_that_differ_say_which_option_it_is(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        config = TrainConfig(
            data="synthetic", shape=Shape((1,)), seed=env.node // 2, threads=env.node
        )
        with pytest.raises(ConfigError, match=r"--seed is 0 on node0, node1 and 1 on node2; give"):
            arrive(config, env, store)

    run_ranks((1, 2, 1), main, tmp_path)


def test_nodes_that_agree_meet_where_nobody_says_how_many_they_are(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        config = TrainConfig(
            data="synthetic", shape=Shape((1,)), threads=env.node, run_dir=str(tmp_path / "run")
        )
        arrival = arrive(config, replace(env, num_nodes=0), store)
        assert arrival.topology.devices_per_node == (2, 1)

    run_ranks((2, 1), main, tmp_path)


def images(root: Path, *names: str, side: int = 9) -> str:
    for name in names:
        for part in ("train", "val"):
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side)).save(path)
    return str(root)


def test_nodes_with_other_files_in_the_same_classes_are_refused(tmp_path: Path) -> None:
    roots = [
        images(tmp_path / "a", "ape/1.png", "bat/1.png"),
        images(tmp_path / "b", "ape/1.png", "bat/2.png"),
    ]

    def main(env: RankEnv, store: Store) -> None:
        config = TrainConfig(
            data=roots[env.node], shape=Shape((1,)), image_size=32, run_dir=str(tmp_path / "run")
        )
        with pytest.raises(ConfigError, match=r"the list of training samples is \w+ on node0 and"):
            train(config, env, store)

    run_ranks((1, 1), main, tmp_path)


def test_copies_of_the_data_at_other_places_are_the_same_data(tmp_path: Path) -> None:
    roots = [images(tmp_path / name, "ape/1.png", "bat/1.png") for name in ("a", "b")]
    one, two = (open_index(Path(root) / "train", None) for root in roots)
    assert one.digest() == two.digest()


@pytest.mark.parametrize("other", ["list", "size"])
def test_a_run_does_not_go_on_with_other_images_of_the_same_classes(
    other: str, tmp_path: Path
) -> None:
    def start(data: str, epochs: int) -> None:
        config = TrainConfig(
            data=data,
            shape=Shape((1,)),
            model=MODEL,
            image_size=8,
            augment="none",
            epochs=epochs,
            run_dir=str(tmp_path / "run"),
        )
        run_ranks((1,), lambda env, store: train(config, env, store) and None, tmp_path)

    names = ["ape/1.png", "ape/2.png", "bat/1.png"]
    mine, copy = (images(tmp_path / place, *names) for place in ("mine", "copy"))
    changed = {"list": [*names[:2], "bat/3.png"], "size": names}[other]
    others = images(tmp_path / "others", *changed, side=9 if other == "list" else 90)
    start(mine, 1)
    start(copy, 2)
    with pytest.raises(AssertionError, match="this run has other DATA: the list of training sam"):
        start(others, 3)
