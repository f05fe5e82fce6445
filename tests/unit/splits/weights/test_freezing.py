"""What is frozen has no gradient and moves nothing, in training as in evaluation."""

from __future__ import annotations

import copy
from typing import Self

import pytest
import torch
from torch import nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import cut_model
from bundlerun.splits.weights.freezing import freeze


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_parameters_and_norms_by_name() -> None:
    model = net()
    said = freeze(model, ["0", "1", "3.bias"])
    assert said == (
        "frozen: 5 of 10 parameters, 0.000124 of 0.000406 million numbers; norms that keep their "
        "statistics: 1"
    )
    assert trained(model) == {"3.weight", "4.weight", "4.bias", "6.weight", "6.bias"}
    model.train()
    assert (model[1].training, model[2].training, model[4].training) == (False, True, True)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    for name in ("1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert not torch.equal(model.state_dict()["4.running_mean"], before["4.running_mean"])
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained(model)


def test_a_norm_is_still_where_its_own_parameters_are_frozen() -> None:
    model = net()
    freeze(model, ["1.*"])
    assert not model.train()[1].training


def test_stages_and_copies_keep_it() -> None:
    model = net()
    freeze(model, ["[01]", "3", "4"])
    for stages in (cut_model(model, ["3"]), [copy.deepcopy(model)]):
        for stage in stages:
            stage.eval()
            stage.train()
            norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
            assert not any(norm.training for norm in norms)
    other = copy.deepcopy(model)
    assert other[1].train() is other[1]


def test_stages_that_their_author_has_cut() -> None:
    model = net()
    stages = [model[:3], model[3:]]
    freeze(stages, ["0", "1.3.weight"])
    assert trained(stages[0]) == set()
    assert trained(stages[1]) == {"3.bias", "4.weight", "4.bias", "6.weight", "6.bias"}


class Thaws(nn.Sequential):
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self[0].requires_grad_(mode)
        return self


@pytest.mark.parametrize(
    ("model", "patterns", "message"),
    [
        (net(), ["7"], "--freeze '7' names no parameters; "),
        (net(), ["*"], r"--freeze \* leaves nothing to train; freeze less"),
        (Thaws(*net()), ["0"], r"--freeze names '0.weight', which the model's own train\(\) sets"),
    ],
)
def test_what_cannot_be_frozen_is_refused(
    model: nn.Module, patterns: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze(model, patterns)
