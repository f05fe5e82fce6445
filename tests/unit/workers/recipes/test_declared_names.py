"""The shipped recipes and the example declare what their metrics give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.report.best import Best
from bundlerun.workers.report.declared import Declared

EXAMPLE = str(Path(__file__).parents[4] / "examples/my_recipe.py")


@pytest.mark.parametrize(
    ("name", "output", "target"),
    [
        ("image-classification", torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64)),
        ("characters", torch.zeros(2, 64, 9), torch.zeros(2, 64, dtype=torch.int64)),
        (EXAMPLE, torch.zeros(4), torch.zeros(4)),
    ],
    ids=["image-classification", "characters", "example"],
)
def test_metrics_are_those_that_are_declared(name: str, output: Tensor, target: Tensor) -> None:
    recipe = load_recipe(TrainConfig(data="synthetic", recipe=name))
    said = Declared.of(recipe)
    assert said.names is not None
    assert tuple(recipe.metrics(output, target)) == said.names
    assert said.best == (Best("error", False) if name == EXAMPLE else Best())
