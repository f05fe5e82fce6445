"""The reference: the unsplit model in one process, over the same micro-batches, plain torch."""

from __future__ import annotations

import tempfile
from dataclasses import astuple, dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import Store
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.order import mix_seed, num_steps, sample_order, step_microbatches
from bundlerun.workers.data.readers import Source
from bundlerun.workers.data.samples import Reader, Request
from bundlerun.workers.optim.lr import lr_factor
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.recipe import DataInfo, DataSets, Recipe, load_recipe, model_inputs
from bundlerun.workers.values.nest import mapped
from tests.ranks.harness import run_ranks


@dataclass
class Reference:
    """What an unsplit run came to."""

    state: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)
    """Of the weights; as the state, where --model-ema is not given."""
    val_losses: tuple[float, float] = (nan, nan)
    """Of the average and of the weights, where there is a validation."""


def train_unsplit(config: TrainConfig, num_steps_wanted: int) -> Reference:
    """Trains as `config` says, without any of the code that is under test.

    In a fork: on a machine with a GPU the first backward of a process starts CUDA, be it for
    tensors in CPU memory, and the ranks that are forked from it later could not.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.pt"

        def main(env: RankEnv, store: Store) -> None:
            found = _train(config, num_steps_wanted)
            torch.save(astuple(found), path)

        run_ranks((1,), main, Path(folder))
        return Reference(*torch.load(path))


def made(config: TrainConfig) -> tuple[Recipe, DataSets, nn.Module]:
    """A recipe, its data, and its whole model with the numbers that a run begins with."""
    recipe = load_recipe(config)
    data = recipe.open_data()
    torch.manual_seed(mix_seed(config.seed))
    info = DataInfo(num_train=len(data.train), num_val=0, num_outputs=data.num_outputs)
    model = recipe.model(info)
    assert isinstance(model, nn.Module)
    return recipe, data, model


def _train(config: TrainConfig, num_steps_wanted: int) -> Reference:
    recipe, data, model = made(config)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    model.to(dtype).train()
    seen = _watch_batchnorms(model)
    optimizer = recipe.optimizer(model.named_parameters())
    highest = optimizer.param_groups[0]["lr"]
    per_epoch = num_steps(len(data.train), config.batch_size)
    collate = Source.train(data).collate
    reader = Reader(data.train, seed=config.seed, skip_unreadable=False, collate=collate)
    averaged = averaged_model(config, model)
    result = Reference({})
    for step in range(num_steps_wanted):
        epoch, in_epoch = divmod(step, per_epoch)
        order = sample_order(config.seed, epoch, len(data.train))
        microbatches = step_microbatches(
            order,
            in_epoch,
            batch_size=config.batch_size,
            microbatch_size=config.samples_per_microbatch,
        )
        total = sum(map(len, microbatches))
        optimizer.zero_grad()
        loss_sum = 0.0
        for indices in microbatches:
            batch = reader[Request(epoch, indices)].batch
            assert batch is not None
            inputs = mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, batch.inputs)
            seen_by_model = model_inputs(recipe, inputs)[0].to(dtype)
            loss = recipe.loss(model(seen_by_model), batch.target)
            (loss * (len(indices) / total)).backward()
            loss_sum += loss.item() * len(indices) / total
        _move_running_statistics(seen)
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = highest * lr_factor(config, step, per_epoch)
        optimizer.step()
        result.losses.append(loss_sum)
        if in_epoch % config.model_ema_steps == 0:
            averaged.update_parameters(model)
            if epoch < config.warmup_epochs:
                averaged.n_averaged.fill_(0)
    result.state = model.state_dict()
    result.average = averaged.module.state_dict() if config.model_ema else result.state
    if data.val is not None:
        of_average, of_weights = (val_loss(each, recipe, data.val) for each in (averaged, model))
        result.val_losses = of_average, of_weights
    return result


@torch.no_grad()
def val_loss(model: nn.Module, recipe: Recipe, samples: Any) -> float:
    """The loss of all validation samples at once."""
    parts = [samples[index] for index in range(len(samples))]
    images, classes = torch.stack([p[0] for p in parts]), torch.tensor([p[1] for p in parts])
    dtype = next(model.parameters()).dtype
    loss: Any = recipe.loss(model.eval()(images.to(dtype)), classes)
    return float(loss)


def averaged_model(config: TrainConfig, model: nn.Module) -> AveragedModel:
    """The average of the weights as torchvision's references define it."""
    per_epoch = config.batch_size * config.model_ema_steps / config.epochs
    decay = 1.0 - min(1.0, (1.0 - config.model_ema_decay) * per_epoch)

    def average(mean: Tensor, new: Tensor, num_averaged: Tensor | int) -> Tensor:
        return decay * mean + (1 - decay) * new

    return AveragedModel(model, avg_fn=average, use_buffers=True)


def _watch_batchnorms(model: nn.Module) -> dict[_BatchNorm, list[Tensor]]:
    """Collects what goes through each batch norm, and keeps torch from moving its statistics."""
    seen: dict[_BatchNorm, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            seen[module] = []
            # As it begins: a model may come with statistics.
            assert module.running_mean is not None
            assert module.running_var is not None
            module.__dict__["_kept"] = [
                module.running_mean.double().clone(),
                module.running_var.double().clone(),
                int(module.num_batches_tracked or 0),
            ]
            module.register_forward_pre_hook(
                lambda m, inputs: (
                    seen[m].append(inputs[0].detach().double()) if m.training else None
                )
            )
    return seen


def _move_running_statistics(seen: dict[_BatchNorm, list[Tensor]]) -> None:
    """Undoes torch's per-micro-batch moves and does one over all samples of the step."""
    for module, inputs in seen.items():
        if not inputs:
            continue
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], dim=1)
        inputs.clear()
        kept = module.__dict__["_kept"]
        kept[2] += 1
        factor = 1 / kept[2] if module.momentum is None else module.momentum
        kept[0] = (1 - factor) * kept[0] + factor * values.mean(1)
        kept[1] = (1 - factor) * kept[1] + factor * values.var(1)
        assert module.running_mean is not None
        assert module.running_var is not None
        assert module.num_batches_tracked is not None
        module.running_mean.copy_(kept[0])
        module.running_var.copy_(kept[1])
        module.num_batches_tracked.fill_(kept[2])
