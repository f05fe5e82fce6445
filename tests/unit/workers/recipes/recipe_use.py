"""What tests do with a recipe: its model, its samples, a few steps."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.order import num_steps, sample_order, step_microbatches
from bundlerun.workers.recipe import DataInfo, DataSets, Recipe, SampleSet, load_recipe


def opened(config: TrainConfig) -> Any:
    """The data sets of a recipe that has nothing to refuse."""
    recipe = load_recipe(config)
    recipe.check()
    return recipe.open_data()


def refusal(config: TrainConfig) -> str:
    """What a recipe refuses with, in one line."""
    with pytest.raises(ConfigError) as caught:
        opened(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def info_of(data: DataSets) -> DataInfo:
    return DataInfo(
        num_train=len(data.train),
        num_val=len(data.val) if data.val else 0,
        num_outputs=data.num_outputs,
    )


def module_of(recipe: Recipe, info: DataInfo) -> nn.Module:
    torch.manual_seed(0)
    model = recipe.model(info)
    assert isinstance(model, nn.Module)
    return model


def train(config: TrainConfig, model: nn.Module, recipe: Recipe, samples: SampleSet) -> list[float]:
    """The loss of each step."""
    optimizer = recipe.optimizer(model.named_parameters())
    losses = []
    size = config.batch_size
    with closing(MicrobatchLoader(samples, config=config, num_workers=0)) as loader:
        for epoch in range(config.epochs):
            order = sample_order(config.seed, epoch, len(samples))
            steps = [
                step_microbatches(order, step, batch_size=size, microbatch_size=size)[0]
                for step in range(num_steps(len(samples), size))
            ]
            for batch in loader.batches(steps, epoch=epoch):
                loss = recipe.loss(model(*batch.inputs), batch.target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return losses


def tensors(samples: SampleSet, index: int) -> tuple[Tensor, Tensor]:
    value, target = samples[index]
    assert isinstance(value, Tensor)
    assert isinstance(target, Tensor)
    return value, target
