"""A GPU gets the next step's first forward before a step's numbers are read, to the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import read_tensors, survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import request_stop
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.life import stopping as rank_stopping
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.training.test_parity import MIXED, losses_of
from tests.standin.device import Device
from tests.standin.ranks import on_standin

# Per epoch two steps of 16 samples, and a short one of 7; the run ends in the second one.
NUM_STEPS = 5
PLAIN = replace(
    MIXED,
    shape=Shape((1,)),
    batch_size=16,
    synthetic_samples=2 * 16 + 7,
    max_steps=NUM_STEPS,
    epochs=2,
    clip_norm=0.0,
    verify_replicas=False,
    transport="nccl",
    model_ema_steps=1,
    validate=False,
)
BEGUN = {2, 4}
"""The first step finds out whether losses have weights, and none begins ahead of its epoch."""


def begun(
    config: TrainConfig, num_ranks: int, folder: Path, *, tells: bool = True, seed: int | None = 1
) -> dict[str, Tensor]:
    """Trains; gives what the newest checkpoint has, and writes which steps were begun ahead.

    Args:
        tells: whether the loop tells a step which one comes after it.
    """
    config = replace(config, run_dir=str(folder / "run"))

    def main(env: RankEnv, store: Store, device: Device) -> None:
        steps: list[int] = []
        step, begin = Trainer.step, Bundle.begin

        def noted(self: Bundle, work: Any, *rest: Any) -> None:
            steps.append(work.step)
            begin(self, work, *rest)

        Bundle.begin = noted  # type: ignore[method-assign]
        if not tells:
            Trainer.step = lambda self, *given: step(self, *given[:4])  # type: ignore[method-assign, assignment]
        train(config, env, store)
        (folder / f"{env.rank}.json").write_text(json.dumps(steps))

    run_ranks((num_ranks,), on_standin(main, seed=seed), folder, timeout_s=120)
    newest = survey(RunPaths(folder / "run")).found[0]
    return read_tensors(newest, newest.weight_map)


def steps_begun(folder: Path) -> set[int]:
    return set(json.loads((folder / "0.json").read_text()))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_steps_that_were_begun_ahead_have_the_same_bits(num_ranks: int, tmp_path: Path) -> None:
    ways = {}
    for tells in (True, False):
        folder = tmp_path / str(tells)
        folder.mkdir()
        ways[tells] = begun(PLAIN, num_ranks, folder, tells=tells)
        assert steps_begun(folder) == (BEGUN if tells else set())
    assert ways[True].keys() == ways[False].keys()
    assert any(name.startswith("ema.") for name in ways[True])
    for name, value in ways[True].items():
        assert torch.equal(value, ways[False][name]), name
    assert losses_of(tmp_path / "True") == losses_of(tmp_path / "False")


def test_a_run_that_is_told_to_stop_stops_after_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose state is on disk; the resumed run does the rest as if it had never stopped."""
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for folder in (whole, halved):
        folder.mkdir()
    wanted = begun(PLAIN, 1, whole)
    paths = RunPaths(halved / "run")

    def stopping(self: Trainer, work: Any, *rest: Any) -> Any:
        if work.step == 2:  # heard when the next one begins
            request_stop(paths, "the test says so")
        return step(self, work, *rest)

    step = Trainer.step
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        patched.setattr(rank_stopping, "LOOK_S", 0.0)
        begun(PLAIN, 1, halved)
    assert survey(paths).found[0].step == 4
    assert steps_begun(halved) == BEGUN, "step 4 was begun, and is not done"
    for name, value in begun(PLAIN, 1, halved).items():
        assert torch.equal(value, wanted[name]), name
    assert losses_of(halved) == losses_of(whole)


BREAKING = """
from torch import nn


class Breaking(nn.Linear):
    count = 0

    def forward(self, x):
        self.count += self.training
        if self.count > 8:
            raise ArithmeticError("the ninth forward")
        return super().forward(x.flatten(1))


def build(num_outputs):
    return Breaking(192, num_outputs)
"""


def test_what_goes_wrong_in_it_is_raised_when_its_step_comes(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(BREAKING)
    config = replace(PLAIN, model=f"{path}:build", checkpoint_steps=1)
    config = replace(config, synthetic_samples=16 * 4, run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store, device: Device) -> None:
        train(config, env, store)

    (end,) = outcomes((1,), on_standin(main), tmp_path, 60).values()
    assert "the ninth forward" in end
    # Of 4 micro-batches each: the third step was begun, and the second one finished all the same.
    assert survey(RunPaths(tmp_path / "run")).found[0].step == 2


WRITING = """
import torch
from torch import nn


class Writing(nn.Linear):
    def __init__(self, num_outputs):
        super().__init__(192, num_outputs)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean())
        return super().forward(x.flatten(1) - self.mean)


def build(num_outputs):
    return Writing(num_outputs)
"""


def test_a_model_whose_forward_writes_state_waits_for_the_step_before(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(WRITING)
    begun(replace(PLAIN, model=f"{path}:build"), 1, tmp_path)
    assert steps_begun(tmp_path) == set()
