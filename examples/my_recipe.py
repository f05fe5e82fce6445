"""A recipe of one's own: how far apart are two points? Two inputs, one number out.

    python -m bundlerun.workers.train --recipe examples/my_recipe.py --shape 1 --epochs 5 made-up
    bundlerun run --recipe examples/my_recipe.py --shape 1,1 --cut head --epochs 5 made-up

DATA (`made-up`) is not read here: the points are computed. Yours would name a file or folder.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.recipe import DataInfo, DataSets

CLOSE = 0.1


class Pairs:
    """Pairs of points of the unit square, and their distance; sample i is always the same."""

    def __init__(self, num_samples: int, first: int = 0) -> None:
        generator = torch.Generator().manual_seed(first)
        self._points = torch.rand((num_samples, 2, 2), generator=generator)

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int, /) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((point, point), distance)."""
        one, other = self._points[index]
        return (one, other), (one - other).norm()


class Distance(nn.Module):
    """Sees both points through the same layer; `head` is a good place to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64))
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """One distance per pair, (batch,)."""
        difference = self.body(one) - self.body(other)
        distance: Tensor = self.head(difference**2).squeeze(1)
        return distance


class MyRecipe:
    """Every method that a recipe needs, and what it may say of its metrics."""

    unit = "pairs"
    metric_names = ("close", "error")
    best = ("error", "min")
    shares = ("close",)

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def check(self) -> None:
        """Nothing can be missing; a recipe that reads files raises ConfigError here."""

    def open_data(self) -> DataSets:
        """2000 pairs to learn from, 500 others to validate with."""
        return DataSets(train=Pairs(2000), val=Pairs(500, first=1), num_outputs=1)

    def model(self, info: DataInfo) -> nn.Module:
        """The unsplit model; --shape and --cut say how it is divided."""
        return Distance()

    def loss(self, output: object, target: Tensor) -> Tensor:
        """Mean squared error."""
        assert isinstance(output, Tensor)
        return nn.functional.mse_loss(output, target)

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """How many are close, and how far off all are; sums, of which the run makes means."""
        assert isinstance(output, Tensor)
        errors = (output - target).abs()
        return {"close": (errors < CLOSE).sum(), "error": errors.sum()}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """AdamW with the learning rate of --lr."""
        return AdamW([{"params": [p for _, p in parameters]}], lr=self._config.lr)


def recipe(config: TrainConfig) -> MyRecipe:
    """What --recipe looks for."""
    return MyRecipe(config)
