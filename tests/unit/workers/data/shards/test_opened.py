"""Images in shards are those of class folders of the same files, and their classes are checked."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.data.shards.classes import check_classes, count_classes, is_sorted
from bundlerun.workers.recipe import load_recipe
from tests.unit.workers.data.shards.shard_files import (
    jpeg,
    sample,
    write_folder,
    write_parquet,
    write_shards,
    write_tar,
)
from tests.unit.workers.recipes.recipe_use import opened, refusal

LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in class folders, in .tar and in .parquet files."""
    top = tmp_path_factory.mktemp("shards")
    images = [jpeg(n) for n in range(len(LABELS))]
    found = {name: top / name for name in ("folder", "tar")}
    for part in ("train", "val"):
        write_folder(found["folder"], part, images, LABELS)
        write_shards(found["tar"], part, images, LABELS, each=4)
    try:
        for part in ("train", "val"):
            write_parquet(top / "parquet" / part / "0.parquet", images, LABELS)
    except pytest.skip.Exception:
        return found
    return {**found, "parquet": top / "parquet"}


def config_of(root: Path, run_dir: Path, **options: Any) -> TrainConfig:
    return TrainConfig(data=str(root), run_dir=str(run_dir), image_size=16, **options)


def read(config: TrainConfig, microbatches: list[list[int]], num_workers: int) -> list[Batch]:
    data = load_recipe(config).open_data()
    loader = MicrobatchLoader(data.train, config=config, num_workers=num_workers)
    with closing(loader):
        return list(loader.batches(microbatches, epoch=3))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_give_what_class_folders_give(
    kind: str, num_workers: int, roots: dict[str, Path], tmp_path: Path
) -> None:
    if kind not in roots:
        pytest.skip("the extra parquet is not installed")
    microbatches = [[7, 1, 10], [0, 3], [2, 5, 4]]
    for decode in ("fast", "exact"):
        config = config_of(roots["folder"], tmp_path / "run", decode=decode)
        wanted = read(config, microbatches, num_workers)
        found = read(replace(config, data=str(roots[kind])), microbatches, num_workers)
        for one, two in zip(found, wanted, strict=True):
            assert torch.equal(one.inputs[0], two.inputs[0])
            assert torch.equal(one.target, two.target)


def test_all_that_a_run_knows_of_them_is_alike(roots: dict[str, Path], tmp_path: Path) -> None:
    datas = [opened(config_of(root, tmp_path / "run")) for root in roots.values()]
    assert {(len(d.train), len(d.val), d.num_outputs) for d in datas} == {(11, 11, 4)}
    assert {str(data.about) for data in datas} == {str(datas[0].about)}
    orders = [data.train.epoch_order(5, 6) for data in datas[1:]]
    # Parquet files of this size fit one window: both are shuffled whole.
    assert all(order == orders[0] for order in orders)


def test_indexes_are_kept_in_the_run_folder(roots: dict[str, Path], tmp_path: Path) -> None:
    opened(config_of(roots["tar"], tmp_path / "run"))
    assert len(list(RunPaths(tmp_path / "run").shard_indexes.iterdir())) == 6


def test_without_a_run_folder_none_is_kept(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load_recipe(TrainConfig(model="resnet18", data=str(roots["tar"]))).open_data()
    assert not list(tmp_path.iterdir())


def test_a_damaged_image_is_named_and_may_be_skipped(
    roots: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    write_tar(root / "0.tar", sample("a", 0, b"no image") | sample("b", 1, jpeg(1)))
    config = config_of(root, tmp_path / "run", validate=False)
    with pytest.raises(ConfigError, match=r"cannot read the image 'a.jpg' of the shard .*0.tar': "):
        read(config, [[0, 1]], 0)
    with caplog.at_level(logging.WARNING):
        (batch,) = read(replace(config, skip_unreadable=True), [[0, 1]], 0)
    assert (batch.num_unreadable, batch.target.tolist()) == (1, [1, 1])
    assert "'a.jpg' of the shard" in caplog.text


def test_a_shard_that_becomes_shorter_meanwhile_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "data/0.tar", sample("a", 0, jpeg(1)) | sample("b", 1, jpeg(2)))
    data = load_recipe(config_of(path.parent, tmp_path / "run", validate=False)).open_data()
    path.write_bytes(path.read_bytes()[:2500])
    loader = MicrobatchLoader(data.train, config=TrainConfig(data="x"), num_workers=0)
    with closing(loader), pytest.raises(ConfigError, match="its shard has become shorter"):
        list(loader.batches([[1]], epoch=0))


def place(index: int) -> str:
    return f"number {index}"


@pytest.mark.parametrize(
    ("labels", "names", "given", "message"),
    [
        ([0, 2], [], 0, "no training image has the class 1, and the highest is 2; .*-classes 3"),
        ([0, -1], [], 0, "the image number 1 has the class -1; classes are 0 to 0"),
        ([0, 1, 5], [], 3, "the image number 2 has the class 5; classes are 0 to 2, as"),
        ([0, 2], ["a", "b"], 0, "the image number 1 has the class 2; classes are 0 to 1"),
        ([0, 1], ["a", "b", "c"], 2, "--num-classes 2 is less than the 3 names of classes"),
    ],
)
def test_numbers_that_are_no_classes_are_refused(
    labels: list[int], names: list[str], given: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        count_classes(np.array(labels), place, names, given)


def test_gaps_are_right_where_somebody_has_named_the_classes() -> None:
    labels = np.array([0, 2])
    assert count_classes(labels, place, ["a", "b", "c"], 0) == 3
    assert count_classes(labels, place, [], 4) == 4
    check_classes(labels, place, 3)
    with pytest.raises(ConfigError, match="the image number 1 has the class 2"):
        check_classes(labels, place, 2)


def test_names_and_bad_classes_of_a_whole_data_set(tmp_path: Path) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    write_tar(root / "train-0.tar", sample("a", 0, jpeg(1)) | sample("b", 1, jpeg(2)))
    write_tar(root / "val-0.tar", sample("a", 2, jpeg(3)))
    config = config_of(root, run)
    said = refusal(config)
    assert said.startswith("the image 'a.jpg' of the shard ")
    assert "val-0.tar' has the class 2; classes are 0 to 1" in said
    (root / "classes.txt").write_text("cat\ndog\nfox\n")
    recipe = load_recipe(config)
    recipe.check()
    assert recipe.num_outputs() == 3  # type: ignore[attr-defined] # before any shard is open
    assert recipe.open_data().about["classes"] == ["cat", "dog", "fox"]


def test_shards_in_order_of_classes_are_told_where_it_matters(tmp_path: Path) -> None:
    root = tmp_path / "data"
    labels = [n // 20 for n in range(60)]
    write_shards(root, "train", [b"x"] * 60, labels, each=20)
    config = config_of(root, tmp_path / "run", validate=False)
    assert opened(config).remarks == []
    (remark,) = opened(replace(config, shuffle_window=20)).remarks
    assert "in order of their classes" in remark
    assert "--shuffle-window" in remark
    assert not is_sorted(np.array([0, 1] * 30))
    assert not is_sorted(np.array([0] * 30))
