"""What the exchange between nodes rounds away, and when the next step makes up for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.optim import loss_scale
from bundlerun.workers.optim.loss_scale import LossScale
from bundlerun.workers.step import StepResult
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import run_ranks
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_kinds import CONFIG


@pytest.fixture(autouse=True)
def _short_first_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are in buckets of their own dtype; the first is float64, which nothing rounds."""
    monkeypatch.setattr("bundlerun.workers.sync.bucket.MOST_WIDENED", 0)


def config(folder: Path, data: str) -> TrainConfig:
    return replace(
        CONFIG, data=data, run_dir=str(folder / "run"), precision="float32", lr=0.01,
        exchange_dtype="bfloat16", sync="local-master",
    )  # fmt: skip


def kept_back(trainer: Trainer) -> list[Tensor]:
    """Flat parts of all that the rank's sums keep."""
    legs = [parts for kept in trainer.sync.kept_back for parts in kept.parts().values()]
    return [part.numbers for parts in legs for part in parts]


def test_a_step_that_is_left_out_leaves_nothing_to_make_up_for(tmp_path: Path) -> None:
    run_ranks((1, 1), trains(replace(config(tmp_path, "nan"), on_nan="skip")), tmp_path)
    steps = [row for row in history(tmp_path) if row["kind"] == "step"]
    assert len(steps) == 6
    # One sample in each epoch is no number.
    assert sum("left_out" in row for row in steps) == 2


@pytest.mark.parametrize(("data", "makes_up"), [("named", True), ("weights", False)])
def test_only_steps_of_one_scale_make_up_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, makes_up: bool
) -> None:
    honest = Trainer.step

    def step(self: Trainer, *args: Any) -> StepResult:
        outcome = honest(self, *args)
        left = kept_back(self)
        assert left
        assert any(bool(tensor.any()) for tensor in left) == makes_up
        return outcome

    monkeypatch.setattr(Trainer, "step", step)
    run_ranks((1, 1), trains(replace(config(tmp_path, data), epochs=1)), tmp_path)


def test_no_step_makes_up_for_one_of_another_loss_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "of", lambda config: LossScale(is_dynamic=True))
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 2)
    honest = Trainer.step

    def step(self: Trainer, *args: Any) -> StepResult:
        before = self.loss_scale.value
        outcome = honest(self, *args)
        left = any(bool(tensor.any()) for tensor in kept_back(self))
        assert left == (self.loss_scale.value == before)
        return outcome

    monkeypatch.setattr(Trainer, "step", step)
    run_ranks((1, 1), trains(replace(config(tmp_path, "named"), epochs=1)), tmp_path)


@pytest.mark.parametrize("exchange", ["all", "powersgd:1", "topk:1"])
def test_the_first_steps_of_a_run_may_be_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    honest, found = Trainer.step, []

    def step(self: Trainer, *args: Any) -> StepResult:
        outcome = honest(self, *args)
        found.append(any(bool(tensor.any()) for tensor in kept_back(self)))
        if len(found) == 3:
            assert found == [False, False, True]
        return outcome

    monkeypatch.setattr(Trainer, "step", step)
    form = "bfloat16" if exchange == "all" else "float32"
    changes = {"exchange_from": 2, "exchange": exchange, "exchange_dtype": form}
    run_ranks((1, 1), trains(replace(config(tmp_path, "named"), epochs=1, **changes)), tmp_path)
    steps = [row for row in history(tmp_path) if row["kind"] == "step"]
    assert len(steps) >= 3
