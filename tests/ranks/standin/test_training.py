"""The whole trainer on the stand-in equals the unsplit model, and makes no mistake on the way."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import read_tensors, survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.pipeline import device_trial
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.pipeline.test_schedules import scheduled
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.training.test_forward_state import STATEFUL
from tests.ranks.training.test_kinds import CONFIG as KINDS
from tests.ranks.training.test_kinds import plain_losses
from tests.ranks.training.test_parity import (
    MIXED,
    assert_close,
    assert_same_average,
    losses_of,
    run_state,
)
from tests.standin.device import Device
from tests.standin.ranks import on_standin

NUM_STEPS = 3
# 2 steps of 16 = 4 micro-batches of 4, then one of 7: a short last micro-batch.
SHORT = replace(
    MIXED, batch_size=16, synthetic_samples=2 * 16 + 7, max_steps=NUM_STEPS, epochs=1,
    validate=False,
)  # fmt: skip
ONCE = ("1f1b", 1)
PIPELINES = [("gpipe", 1), ONCE, ("eager-1f1b", 1), ("interleaved", 2), ("zero-bubble", 1)]
SCHEMES: list[SchemeName] = ["local-master", "sharded", "flat"]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(SHORT, NUM_STEPS)


def trained(
    config: TrainConfig, nodes: tuple[int, ...], folder: Path, *, seed: int | None = None
) -> dict[str, Tensor]:
    """The state that a run on the stand-in leaves; fails where there are faults."""
    config = replace(config, run_dir=str(folder / "run"))

    def main(env: RankEnv, store: Store, device: Device) -> None:
        train(config, env, store)
        assert sum(device.record.operations.values()) > 100

    run_ranks(nodes, on_standin(main, seed=seed), folder, timeout_s=120)
    newest = survey(RunPaths(folder / "run")).found[0]
    tensors = read_tensors(newest, newest.weight_map)
    return {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}


def assert_like(reference: Reference, state: dict[str, Tensor], folder: Path) -> None:
    assert_close(state, reference.state, 1e-10)
    assert losses_of(folder) == pytest.approx(reference.losses, rel=1e-10)
    assert_same_average(folder, reference)


@pytest.mark.parametrize("seed", [None, 3])
def test_one_rank_trains_like_the_unsplit_model(
    seed: int | None, reference: Reference, tmp_path: Path
) -> None:
    state = trained(replace(SHORT, shape=Shape((1,))), (1,), tmp_path, seed=seed)
    assert_like(reference, state, tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("transport", ["nccl", "cpu"])
def test_replicas_train_like_the_unsplit_model(
    scheme: SchemeName, transport: str, reference: Reference, tmp_path: Path
) -> None:
    config = replace(SHORT, shape=Shape((1,)), sync=scheme, transport=transport)
    assert_like(reference, trained(config, (2, 1), tmp_path), tmp_path)


@pytest.mark.parametrize("kind", PIPELINES, ids=str)
@pytest.mark.parametrize("transport", ["nccl", "cpu"])
def test_every_schedule_trains_like_the_unsplit_model(
    kind: tuple[str, int], transport: str, reference: Reference, tmp_path: Path
) -> None:
    config = replace(scheduled(SHORT, (1, 1), kind), transport=transport)
    if transport == "cpu":  # stages that replay
        config = replace(config, cutter="auto")
    assert_like(reference, trained(config, (2,), tmp_path), tmp_path)


@pytest.mark.parametrize(("kind", "shape"), [(ONCE, (2, 1)), (("interleaved", 2), (1, 1))])
def test_stages_that_talk_from_gpu_to_gpu_train_like_the_unsplit_model(
    kind: tuple[str, int],
    shape: tuple[int, ...],
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(why: str) -> None:
        raise AssertionError(why)

    monkeypatch.setattr(device_trial, "_say", fail)
    config = replace(scheduled(SHORT, shape, kind), transport="ipc")
    assert_like(reference, trained(config, (sum(shape),), tmp_path), tmp_path)


@pytest.mark.parametrize(("kind", "scheme"), list(zip(PIPELINES, SCHEMES + SCHEMES, strict=False)))
def test_wide_stages_train_like_the_unsplit_model(
    kind: tuple[str, int], scheme: SchemeName, reference: Reference, tmp_path: Path
) -> None:
    config = replace(scheduled(SHORT, (2, 1), kind), sync=scheme, transport="nccl")
    assert_like(reference, trained(config, (3,), tmp_path), tmp_path)


def test_streams_that_take_turns_change_nothing(reference: Reference, tmp_path: Path) -> None:
    config = replace(scheduled(SHORT, (1, 1), ONCE), transport="nccl")
    assert_like(reference, trained(config, (2, 2), tmp_path, seed=5), tmp_path)


@pytest.mark.parametrize(("shape", "num_ranks"), [((1,), 1), ((1,), 2), ((1, 1), 2)], ids=str)
def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(
    shape: tuple[int, ...], num_ranks: int, tmp_path: Path
) -> None:
    """The optimizer has its work by then: the device got it before anybody knew the loss."""
    cut = ("head",)[: len(shape) - 1]
    config = replace(KINDS, data="nan", shape=Shape(shape), cut=cut, checkpoint_steps=1)
    plain = plain_losses(config)
    number = next(i for i, loss in enumerate(plain) if math.isnan(loss))
    config = replace(config, run_dir=str(tmp_path / "run"), transport="cpu")

    def main(env: RankEnv, store: Store, device: Device) -> None:
        train(config, env, store)

    ends = outcomes((num_ranks,), on_standin(main), tmp_path, 60)
    assert any(f"the loss of step {number + 1} is nan" in text for text in ends.values())
    assert losses_of(tmp_path) == pytest.approx(plain[:number], rel=1e-12)
    newest = survey(RunPaths(tmp_path / "run")).found[0]
    assert newest.step == number
    tensors = read_tensors(newest, newest.weight_map)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_optimizer_begins_with_what_forwards_have_written_to_parameters(tmp_path: Path) -> None:
    """Else what they left would be put in place of what the optimizer has made of it."""
    config = replace(STATEFUL, shape=Shape((1,)), max_steps=NUM_STEPS, transport="nccl")
    wanted = run_state(replace(config, transport="auto"), (1,), tmp_path / "cpu")
    assert_close(trained(config, (2,), tmp_path / "gpus"), wanted, 1e-10)
    assert losses_of(tmp_path / "gpus") == pytest.approx(losses_of(tmp_path / "cpu"), rel=1e-10)


COUNTING = """
import torch
from torch import nn


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 6)
        self.register_buffer("count", torch.zeros(6))

    def forward(self, x):
        self.count.add_(1)
        return torch.tanh(self.layer(x.flatten(1))), self.count


class Second(nn.Linear):
    def forward(self, x, count):
        return super().forward(x * count)


def build(num_outputs):
    return [First(), Second(6, num_outputs)]
"""


def test_a_buffer_that_a_stage_passes_on_arrives_as_its_forward_has_left_it(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(COUNTING)
    config = replace(SHORT, model=f"{path}:build", cut=(), shape=Shape((1, 1)), clip_norm=0.0)
    wanted = run_state(config, (2,), tmp_path / "cpu")
    config = replace(config, transport="nccl")
    assert_close(trained(config, (2,), tmp_path / "gpus"), wanted, 1e-10)
    assert losses_of(tmp_path / "gpus") == pytest.approx(losses_of(tmp_path / "cpu"), rel=1e-10)


DROPPING = """
from torch import nn


def build(num_outputs):
    first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.3), nn.Tanh())
    head = nn.Sequential(nn.Flatten(), nn.Linear(216, num_outputs))
    return [first, nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.3), head)]
"""


@pytest.mark.parametrize("transport", ["nccl", "cpu"])
def test_recomputed_stages_train_to_the_same_bits(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(DROPPING)
    config = replace(SHORT, model=f"{path}:build", cut=(), shape=Shape((1, 1)), transport=transport)
    states = [
        trained(replace(config, recompute=choice), (2,), tmp_path / choice)
        for choice in ("none", "0,1")
    ]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_bfloat16_trains_nearly_like_single_precision(tmp_path: Path) -> None:
    config = replace(scheduled(SHORT, (1, 1), ONCE), transport="nccl", precision="bfloat16")
    trained(config, (2,), tmp_path)
    wanted = train_unsplit(replace(SHORT, precision="float32"), NUM_STEPS).losses
    assert losses_of(tmp_path) == pytest.approx(wanted, rel=0.05)
