"""Detection trains through any bundles as the model does in a plain loop over micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.order import num_steps, sample_order, step_microbatches
from bundlerun.workers.data.samples import Reader, Request
from bundlerun.workers.optim.lr import lr_factor
from bundlerun.workers.recipe import model_inputs
from tests.ranks.harness import run_ranks
from tests.ranks.reference import made
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_parity import losses_of
from tests.ranks.training.test_recipes import CONFIG, doubled
from tests.unit.workers.data.boxed import write_boxed

MODEL = Path(__file__).parents[1] / "tiny_detector.py"


def plain_losses(config: TrainConfig) -> list[float]:
    """Of a loop over micro-batches, whose losses are means over their images."""
    recipe, data, model = made(config)
    model.double()
    optimizer = recipe.optimizer(model.named_parameters())
    highest = optimizer.param_groups[0]["lr"]
    size, per_epoch = config.batch_size, num_steps(len(data.train), config.batch_size)
    reader = Reader(
        data.train, seed=config.seed, skip_unreadable=False, collate=Collate.of(data, data.train)
    )
    losses = []
    for step in range(config.epochs * per_epoch):
        epoch, in_epoch = divmod(step, per_epoch)
        order = sample_order(config.seed, epoch, len(data.train))
        parts = step_microbatches(
            order, in_epoch, batch_size=size, microbatch_size=config.samples_per_microbatch
        )
        count = sum(map(len, parts))
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            batch = reader[Request(epoch, part)].batch
            assert batch is not None
            loss = recipe.loss(model(*doubled(model_inputs(recipe, batch.inputs))), batch.target)
            assert isinstance(loss, torch.Tensor)
            (loss * (len(part) / count)).backward()
            total += loss.item() * len(part) / count
        optimizer.param_groups[0]["lr"] = highest * lr_factor(config, step, per_epoch)
        optimizer.step()
        losses.append(total)
    return losses


def test_detection_learns_the_same_through_any_bundles(tmp_path: Path) -> None:
    write_boxed(tmp_path / "data", train=11, val=5)
    config = replace(
        CONFIG,
        data=str(tmp_path / "data"),
        recipe="detection",
        model=f"{MODEL}:build",
        batch_size=6,
        microbatch_size=2,
    )
    wanted = plain_losses(config)
    # Micro-batches of one image, too, of which fewer boxes cross than of those of two.
    cut: dict[str, Any] = {"shape": Shape((1, 1)), "cut": ("backbone.4",)}
    runs: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
        "alone": ({}, (1,)), "cut": (cut, (2, 2)), "far": (cut, (1, 1)),
    }  # fmt: skip
    validations = []
    for name, (changes, devices) in runs.items():
        changed = replace(config, **changes, run_dir=str(tmp_path / name / "run"))
        run_ranks(devices, trains(changed), tmp_path / name)
        assert losses_of(tmp_path / name) == pytest.approx(wanted, rel=1e-10), name
        rows = [row for row in history(tmp_path / name) if row["kind"] == "eval"]
        assert all(row["loss"] is None for row in rows)
        validations.append([row["metrics"] for row in rows])
    assert validations[0][-1].keys() == {"map", "map_50", "map_75", "ap_1", "ap_2"}
    assert validations[0][-1]["map_50"] > 0
    assert validations[1] == validations[0]
