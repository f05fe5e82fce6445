"""Shards and streams train as files or numbers do, on any ranks, and go on exactly."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.order import block_order
from bundlerun.workers.data.shards.parquet_records import RUN
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks import reference
from tests.ranks.harness import outcomes
from tests.ranks.reference import train_unsplit
from tests.ranks.training.test_bad_input import MODEL, end_of
from tests.ranks.training.test_parity import CONFIG, assert_close, bundle_run, losses_of
from tests.unit.workers.data.shards.shard_files import (
    jpeg,
    write_folder,
    write_parquet,
    write_shards,
)

STREAMED = str(Path(__file__).parents[1] / "stream_recipe.py")
NUM, EACH = 27, 4
NUM_STEPS = 8  # two epochs


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("shards")
    images = [jpeg(n, 9) for n in range(NUM)]
    labels = [n // 7 for n in range(NUM)]
    for part in ("train", "val"):
        write_folder(top / "folder", part, images, labels)
        write_shards(top / "tar", part, images, labels, each=EACH)
    return top


def config_of(root: Path, **changes: object) -> TrainConfig:
    return replace(
        CONFIG,
        data=str(root),
        shape=Shape((1,)),
        batch_size=8,
        microbatch_size=2,
        max_steps=NUM_STEPS,
        **changes,
    )


def test_shards_are_class_folders_on_two_stages_and_three_bundles(
    roots: Path, tmp_path: Path
) -> None:
    wanted = train_unsplit(config_of(roots / "folder", augment="imagenet"), NUM_STEPS)
    config = config_of(roots / "tar", augment="imagenet", loader_workers=2, validate=True)
    state = bundle_run(replace(config, shape=Shape((1, 1))), (6,), tmp_path)
    assert losses_of(tmp_path) == pytest.approx(wanted.losses, rel=1e-10)
    assert_close(state, wanted.state, 1e-10)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_run_goes_on_in_the_middle_of_an_epoch_on_other_ranks(
    kind: str, roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = 1
    if kind == "parquet":
        run = RUN
        images = [jpeg(n, 9) for n in range(NUM)]
        path = roots / "parquet" / "train" / "0.parquet"
        write_parquet(path, images, [n // 7 for n in range(NUM)], group=EACH)
    sizes = [min(EACH, NUM - n) for n in range(0, NUM, EACH)]
    config = config_of(roots / kind, loader_workers=1, shuffle_window=7)
    monkeypatch.setattr(
        reference, "sample_order", lambda seed, epoch, _: block_order(seed, epoch, sizes, 7, run)
    )
    wanted = train_unsplit(config, NUM_STEPS)
    for max_steps, num_ranks in ((2, 1), (5, 3), (NUM_STEPS, 2)):
        state = bundle_run(replace(config, max_steps=max_steps), (num_ranks,), tmp_path)
    assert losses_of(tmp_path) == pytest.approx(wanted.losses, rel=1e-10)
    assert_close(state, wanted.state, 1e-10)


def test_a_stream_of_the_users_goes_on_in_the_middle_of_an_epoch_on_other_ranks(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, shape=Shape((1,)), synthetic_samples=27, batch_size=8)
    config = replace(config, microbatch_size=2, max_steps=NUM_STEPS)
    wanted = train_unsplit(config, NUM_STEPS)
    config = replace(config, recipe=STREAMED, loader_workers=2, validate=True)
    for max_steps, shape, num_ranks in ((2, (1, 1), 2), (5, (2,), 4), (NUM_STEPS, (1,), 1)):
        stopped = replace(config, max_steps=max_steps, shape=Shape(shape))
        state = bundle_run(stopped, (num_ranks,), tmp_path)
    assert losses_of(tmp_path) == pytest.approx(wanted.losses, rel=1e-10)
    assert_close(state, wanted.state, 1e-10)


def test_a_stream_that_looks_at_the_rank_is_refused_before_the_first_step(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1,)), recipe=STREAMED, run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store) -> None:
        os.environ["PART_OF_STREAM"] = str(env.rank)
        train(config, env, store)

    failures = outcomes((2,), main, tmp_path, 60)
    for rank in range(2):
        assert "a stream must be the same on all ranks: the list of training" in failures[rank]
    assert not RunPaths(tmp_path / "run").metrics.exists() or not losses_of(tmp_path)


def test_a_shard_that_is_cut_off_is_one_line_before_the_first_step(
    roots: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole = (roots / "tar/train/0000.tar").read_bytes()
    (data / "0000.tar").write_bytes(whole[:3000])
    argv = ["--shape=1", "--no-validate", f"--model={MODEL}", f"--run-dir={tmp_path / 'run'}"]
    code, said = end_of([*argv, str(data)], tmp_path)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(f"error: the shard '{data}/0000.tar' cannot be used: it ends at")
