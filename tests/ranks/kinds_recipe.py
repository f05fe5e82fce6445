"""A recipe of many kinds, which DATA names: nested samples, weighted losses, odd optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.recipe import DataInfo, DataSets

CLASSES = 3
LENGTH = 24


class Boxes(NamedTuple):
    """A target that has names."""

    label: Any
    weights: Any


class Nested:
    """Samples whose input and target are dicts, lists and named tuples."""

    def __init__(self, form: str) -> None:
        generator = torch.Generator().manual_seed(5)
        self._x = torch.randn(LENGTH, 6, generator=generator)
        self._form = form

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int, /) -> Any:
        x = self._x[index]
        if self._form == "nan" and index == 13:
            x = x * float("nan")
        is_whole = self._form in ("pixels", "noisy pixels")
        image = (32 * x + 128).clamp(0, 255).to(torch.uint8) if is_whole else x
        batch = {"image": image, "more": [x[:2].numpy(), {"scale": float(index % 4)}]}
        label = index % CLASSES
        if self._form == "dict":
            return {**batch, "label": label}
        return batch, Boxes(label, (np.float32(0.5), [1.0, 2.0]))


class Two(nn.Module):
    """Takes a nested input as one argument; `head` is a good place to cut."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.side = nn.Linear(2, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, batch: Any) -> Tensor:
        side = self.side(batch["more"][0]) * batch["more"][1]["scale"].unsqueeze(1)
        result: Tensor = self.head(torch.tanh(self.body(batch["image"]) + side))
        return result


class Complex(Two):
    """Has complex parameters and a complex buffer; complex numbers cross the cut at `turn`."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(5, 5, dtype=torch.complex128)
        self.turn = nn.Linear(5, 5, dtype=torch.complex128)
        self.register_buffer(
            "phases", torch.polar(torch.ones(5), torch.arange(5.0)).to(torch.cfloat)
        )

    def forward(self, batch: Any) -> Tensor:
        turned = self.turn(self.wide(self.body(batch["image"]).to(torch.complex128)))
        result: Tensor = self.head((turned * self.phases).abs())
        return result


class Sparse(Two):
    """Has an embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(4, 5, sparse=True)

    def forward(self, batch: Any) -> Tensor:
        result: Tensor = self.head(torch.tanh(self.body(batch["more"][1]["scale"].long())))
        return result


class SparseBuffer(Two):
    """Has a buffer that no checkpoint can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.eye(2).to_sparse())


class Remembers(SGD):
    """Scales by what it keeps: lists with each parameter, a number in each group."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # no loss
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                trail = self.state[parameter].setdefault("trail", {"means": [], "last": None})
                trail["means"].append(parameter.grad.abs().mean())
                trail["last"] = float(len(trail["means"]))
                parameter.grad.mul_(sum(trail["means"]) / (group["k"] * trail["last"]))
        super().step()


class Hoards(SGD):
    """Keeps an object, which no checkpoint can hold."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # no loss
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["lock"] = object()


MODELS = {"complex": Complex, "sparse": Sparse, "sparse buffer": SparseBuffer}
OPTIMIZERS = {"remembers": Remembers, "hoards": Hoards}


class Kinds:
    """Whatever DATA says."""

    unit = "samples"

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.best = ("mae", "min") if config.data == "best" else None
        if config.data in ("declared", "another name"):
            self.metric_names = ("size", "mae")
        if config.data in ("pixels", "noisy pixels"):
            self.on_device = self._numbers

    def check(self) -> None:
        """Nothing can be missing."""

    def open_data(self) -> DataSets:
        samples = Nested(self._config.data)
        has_val = self._config.data in ("best", "weights", "declared", "agreed")
        val = samples if has_val else None
        return DataSets(train=samples, val=val, num_outputs=CLASSES)

    def model(self, info: DataInfo) -> nn.Module:
        return MODELS.get(self._config.data, Two)()

    def _numbers(self, batch: Any) -> Any:
        numbers = (batch["image"].float() - 128) / 32
        if self._config.data == "noisy pixels":
            numbers = numbers + torch.rand(numbers.shape)
        return {**batch, "image": numbers}

    def loss(self, output: object, target: Any) -> Any:
        assert isinstance(output, Tensor)
        if self._config.data in ("weights", "mean"):
            return self._weighted(output, target.label % 2)
        if self._config.data == "dict":
            return cross_entropy(output, target)
        (half, pair) = target.weights
        assert half.shape == (len(output),)
        assert [tuple(item.shape) for item in pair] == [(2,)] * len(output)
        return cross_entropy(output, target.label) * half.mean() * pair.sum(1).mean()

    def _weighted(self, output: Tensor, label: Tensor) -> Any:
        """Class weights: a mean over weights, not over samples."""
        weights = torch.tensor([0.0, 9.0, 1.0], dtype=output.dtype)
        if self._config.data == "mean":
            return cross_entropy(output, label, weight=weights)
        return cross_entropy(output, label, weight=weights, reduction="sum"), weights[label].sum()

    def metrics(self, output: object, target: Any) -> dict[str, Tensor]:
        assert isinstance(output, Tensor)
        mae = {"mae": output.abs().sum()}  # grows while it learns
        match self._config.data:
            case "best":
                return mae
            case "declared" | "agreed":
                return {**mae, "size": torch.tensor(len(output))}
            case "another name":
                return {**mae, "sizes": torch.tensor(len(output))}
        return {}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        make = OPTIMIZERS.get(self._config.data, SGD)
        optimizer = make([{"params": [p for _, p in parameters]}], lr=self._config.lr)
        if self._config.data == "scheduled":
            schedule = LambdaLR(optimizer, lambda step: (step + 1) / 4)
            optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer


def recipe(config: TrainConfig) -> Kinds:
    """What --recipe looks for."""
    return Kinds(config)
