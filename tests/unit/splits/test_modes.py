"""Stages of a model with a `train` of its own."""

from __future__ import annotations

from typing import Self

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import TracedModel, cut_model
from bundlerun.splits.modes import read_modes


class Block(nn.Module):
    """Keeps its batch norm in evaluation; the stages of the model do not hold the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Freezes its first layer while training, and returns nothing from `train`, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.block = Block()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv2d(3, 2, 1)
        self.calls = 0

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.calls += 1
        self.stem.weight.requires_grad_(not mode)
        self.norm.eval()
        self.drop.p = 0.25 if mode else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.block(self.norm(self.stem(x)))))


def flags(modules: list[nn.Module]) -> dict[str, bool]:
    return {
        name: module.training
        for root in modules
        for name, module in root.named_modules()
        if name and type(module) is not nn.Module
    }


@pytest.mark.parametrize("cuts", [["block"], ["block.norm"], ["drop", "head"]])
def test_stages_go_into_a_mode_as_the_model_does(cuts: list[str]) -> None:
    model = Net()
    stages = cut_model(model, cuts)
    for mode in (True, False, True):
        for stage in stages:
            stage.train(mode)
        found = flags(stages)
        drop, frozen = model.drop.p, model.stem.weight.requires_grad
        model.train(mode)
        assert found.items() <= flags([model]).items()
        assert (drop, frozen) == (model.drop.p, model.stem.weight.requires_grad)
        assert all(stage.training is mode for stage in stages)


def test_the_statistics_stay_when_the_model_freezes_them() -> None:
    model = Net()
    front, rear = cut_model(model, ["block.norm"])
    rear.train()(*front.train()(torch.randn(4, 3, 5, 5)))
    assert torch.equal(model.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]
    assert torch.equal(model.block.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


def test_what_train_does_not_touch_stays_as_somebody_else_has_set_it() -> None:
    model = Net()
    (front, _) = cut_model(model, ["block"])
    model.stem.bias.requires_grad_(False)  # type: ignore[union-attr]
    front.train()
    assert not model.stem.bias.requires_grad  # type: ignore[union-attr]


def test_the_model_is_left_as_it_was() -> None:
    model = Net()
    TracedModel(model)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_a_train_of_its_own_is_not_asked() -> None:
    assert read_modes(nn.Sequential(nn.Linear(2, 2))) is None


def test_a_train_that_does_another_thing_each_time_is_refused_by_name() -> None:
    class Alternating(Net):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)
            self.norm.train(bool(self.calls // 2 % 2))

    with pytest.raises(ConfigError, match=r"train\(\) of Alternating sets 'norm' another way"):
        cut_model(Alternating(), ["block"])


def test_meta_models_are_asked_too() -> None:
    with torch.device("meta"):
        model = Net()
    front, rear = cut_model(model, ["block"])
    front.train()
    rear.train()
    assert not model.norm.training
    assert not model.block.norm.training
