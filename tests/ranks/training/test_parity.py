"""Bundle training equals the unsplit model, whatever the shape and the nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.choices import Precision
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import read_tensors, survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.reference import Reference, train_unsplit

NUM_STEPS = 5
MODEL = f"{Path(__file__).parents[1] / 'tiny_model.py'}:build"
# 4 steps of 24 = 6 micro-batches of 4, then one of 11: a short last micro-batch.
CONFIG = TrainConfig(
    data="synthetic",
    model=MODEL,
    synthetic_samples=4 * 24 + 11,
    image_size=8,
    augment="none",
    batch_size=24,
    microbatch_size=4,
    max_steps=NUM_STEPS,
    epochs=3,
    lr=0.2,
    precision="float64",
    validate=False,
    share="equal",
    timeout_s=30.0,
    bucket_mb=0.001,
    verify_replicas=True,
    clip_norm=0.5,
    sync="local-master",
)
MIXED = replace(
    CONFIG, mixup_alpha=0.4, cutmix_alpha=1.0, label_smoothing=0.1, model_ema=True,
    model_ema_steps=2, model_ema_decay=0.98, validate=True,
)  # fmt: skip
CUTS = {1: (), 2: ("second",), 3: ("second", "third")}
LAYOUTS = [
    ((1,), (1,)),
    ((1,), (3,)),
    ((1, 1), (2,)),
    ((1, 1), (4,)),
    ((1, 1), (2, 2)),
    ((1, 1), (6, 2)),
    ((1, 1, 1), (3,)),
    ((1, 1, 1), (2, 4)),
    ((2, 1), (3, 3)),
    ((3, 2), (5,)),
]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(CONFIG, NUM_STEPS)


@pytest.fixture(scope="module")
def mixed() -> Reference:
    return train_unsplit(MIXED, NUM_STEPS)


def bundle_run(
    config: TrainConfig, nodes: tuple[int, ...], folder: Path, *, limit_s: float = 60.0
) -> dict[str, Tensor]:
    """The state that a run of the real worker leaves."""
    config = replace(config, cut=CUTS[config.shape.num_stages])
    return run_state(config, nodes, folder, limit_s=limit_s)


def run_state(
    config: TrainConfig, nodes: tuple[int, ...], folder: Path, *, limit_s: float = 60.0
) -> dict[str, Tensor]:
    """The same with the cuts of `config`."""
    config = replace(config, run_dir=str(folder / "run"))

    def main(env: RankEnv, store: Store) -> None:
        train(config, env, store)

    run_ranks(nodes, main, folder, timeout_s=limit_s)
    tensors = final_tensors(folder)
    return {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}


def losses_of(folder: Path) -> list[float]:
    lines = RunPaths(folder / "run").metrics.read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"]


def final_tensors(folder: Path) -> dict[str, Tensor]:
    """All that the newest checkpoint of a run has, the optimizer's state included."""
    newest = survey(RunPaths(folder / "run")).found[0]
    return read_tensors(newest, newest.weight_map)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = value.double().abs().max().clamp_min(1e-3)
        error = (found[name].double() - value.double()).abs().max() / scale
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def assert_same_average(folder: Path, reference: Reference) -> None:
    """Of the weights, but for whole numbers: torch averages those and cuts the rest off."""
    found = {n.removeprefix("ema."): t for n, t in final_tensors(folder).items() if "ema." in n}
    assert found.keys() == reference.average.keys()
    assert any(not torch.equal(found[n], t) for n, t in reference.state.items())
    real = [name for name, tensor in found.items() if tensor.is_floating_point()]
    assert_close({n: found[n] for n in real}, {n: reference.average[n] for n in real}, 1e-10)
    if isnan(reference.val_losses[0]):
        return
    rows = map(json.loads, RunPaths(folder / "run").metrics.read_text().splitlines())
    *_, last = (row for row in rows if row["kind"] == "eval")
    losses = last["loss"], last["metrics"]["raw_loss"]
    assert losses == pytest.approx(reference.val_losses, rel=1e-10)
    assert losses[0] != losses[1]


def assert_keeps_single_precision_and_learns(precision: Precision, folder: Path) -> None:
    """A run whose arithmetic is in fewer bits than its parameters."""
    config = replace(
        CONFIG,
        shape=Shape((1, 1)),
        precision=precision,
        max_steps=0,
        epochs=4,
        clip_norm=0.0,
        lr=0.5,
    )
    state = bundle_run(config, (4,), folder)
    assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}
    losses = losses_of(folder)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("shape", "nodes"), LAYOUTS, ids=str)
def test_every_layout_trains_like_the_unsplit_model(
    shape: tuple[int, ...], nodes: tuple[int, ...], mixed: Reference, tmp_path: Path
) -> None:
    state = bundle_run(replace(MIXED, shape=Shape(shape)), nodes, tmp_path)
    assert_close(state, mixed.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(mixed.losses, rel=1e-10)
    assert_same_average(tmp_path, mixed)


def test_single_precision_trains_like_the_unsplit_model(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="float32", shape=Shape((1, 1)))
    state = bundle_run(config, (4, 2), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-5)


def test_one_bundle_of_two_stages_is_bit_equal_to_one_process(tmp_path: Path) -> None:
    config = replace(CONFIG, precision="float32", clip_norm=0.0)
    one = bundle_run(replace(config, shape=Shape((1,))), (1,), tmp_path / "one")
    two = bundle_run(replace(config, shape=Shape((1, 1))), (2,), tmp_path / "two")
    assert all(torch.equal(two[name], value) for name, value in one.items())
    assert losses_of(tmp_path / "one") == losses_of(tmp_path / "two")


def test_more_bundles_than_microbatches_leave_some_idle(
    reference: Reference, tmp_path: Path
) -> None:
    config = replace(CONFIG, shape=Shape((1,)), microbatch_size=12)
    state = bundle_run(config, (2, 1), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-10)


def test_one_microbatch_per_step_is_torchs_own_batch_norm(tmp_path: Path) -> None:
    config = replace(CONFIG, shape=Shape((1, 1)), microbatch_size=24)
    state = bundle_run(config, (2,), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("nodes", [(2,), (2, 2)], ids=str)
def test_ranks_that_share_a_gpu_train_like_the_unsplit_model(
    nodes: tuple[int, ...], reference: Reference, tmp_path: Path
) -> None:
    state = bundle_run(replace(CONFIG, shape=Shape((1, 1)), transport="cpu"), nodes, tmp_path)
    assert_close(state, reference.state, 1e-8)


@pytest.mark.gpu(2)
def test_nccl_trains_like_the_unsplit_model(reference: Reference, tmp_path: Path) -> None:
    state = bundle_run(replace(CONFIG, shape=Shape((1, 1)), transport="nccl"), (2,), tmp_path)
    assert_close(state, reference.state, 1e-8)
