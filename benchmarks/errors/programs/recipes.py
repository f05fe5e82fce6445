"""Recipes with a fault each; KIND in the environment names one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS, SGD, Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.recipe import DataInfo, DataSets

_Named = Iterable[tuple[str, nn.Parameter]]


class _Points:
    """Points of three classes; one may be damaged, or a text."""

    def __init__(self, bad: int = -1, text: bool = False) -> None:
        self.bad, self.text = bad, text

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == self.bad:
            raise ValueError(f"record {index} is damaged")
        draw = torch.Generator().manual_seed(index)
        return ("a text" if self.text else torch.randn(6, generator=draw)), index % 3


class _Stream:
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        points = _Points()
        return (points[index] for index in range(len(points)))


class Recipe:
    """Nothing is wrong with it."""

    unit = "points"

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Nothing to look at."""

    def open_data(self) -> DataSets:
        """Points."""
        return DataSets(train=_Points(), val=None, num_outputs=3)

    def model(self, info: DataInfo) -> nn.Module:
        """A small one."""
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, info.num_outputs))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the points."""
        return cross_entropy(output, target)

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """How many are right."""
        return {"top1": (output.argmax(1) == target).sum()}

    def optimizer(self, parameters: _Named) -> Optimizer:
        """Plain."""
        return SGD([p for _, p in parameters], lr=0.1)


class texts(Recipe):
    """Samples are texts."""

    def open_data(self) -> DataSets:
        """As the class says."""
        return DataSets(train=_Points(text=True), val=None, num_outputs=3)


class stream(Recipe):
    """A stream of nobody knows how many."""

    def open_data(self) -> DataSets:
        """As the class says."""
        return DataSets(train=_Stream(), val=None, num_outputs=3)


class short(Recipe):
    """A stream of fewer than it says."""

    def open_data(self) -> DataSets:
        """As the class says."""
        return DataSets(train=_Stream(), val=None, num_outputs=3, num_train=48)


class corrupt(Recipe):
    """One sample cannot be read."""

    def open_data(self) -> DataSets:
        """As the class says."""
        return DataSets(train=_Points(bad=17), val=None, num_outputs=3)


class nan(Recipe):
    """The loss is no number from the first step on."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """As the class says."""
        return super().loss(output, target) * torch.nan


class lbfgs(Recipe):
    """An optimizer that calls the model itself."""

    def optimizer(self, parameters: _Named) -> Optimizer:
        """As the class says."""
        return LBFGS([p for _, p in parameters])


def _keep(optimizer: Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["made_by"] = object()


class keeps(Recipe):
    """An optimizer whose state is no tensors and no numbers."""

    def optimizer(self, parameters: _Named) -> Optimizer:
        """As the class says."""
        made = super().optimizer(parameters)
        made.register_step_post_hook(_keep)
        return made


def recipe(config: TrainConfig) -> Recipe:
    """The one that is asked for."""
    made: Recipe = globals()[os.environ["KIND"]](config)
    return made
