"""The optimizers that the options name, for recipes that want no other."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from launcher.config import TrainConfig


def make_optimizer(
    config: TrainConfig, parameters: Iterable[tuple[str, nn.Parameter]]
) -> Optimizer:
    """SGD with momentum, or AdamW, over the named parameters of one stage; weight decay for all."""
    # A stage may have no parameters at all; torch takes that as a group, not as an empty list.
    groups = [{"params": [parameter for _, parameter in parameters]}]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
