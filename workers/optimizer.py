"""The optimizers that the options name, and what a recipe's own has to be."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop, SparseAdam

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.training.optim import AS_ALL
from bundlerun.workers.device.traits import has_fused_step

_RMSPROP_ALPHA, _RMSPROP_EPS = 0.9, 0.0316
"""As the nets that are trained with it want them (Inception v3, MobileNets), and torchvision's
references have them."""
_EMBEDDINGS = {
    *("class_token", "cls_token", "pos_embedding", "pos_embed", "position_embedding"),
    *("position_embeddings", "relative_position_bias_table"),
}
"""What torchvision, timm and transformers call class tokens and embeddings of positions."""


def make_optimizer(
    config: TrainConfig, parameters: Iterable[tuple[str, nn.Parameter]]
) -> Optimizer:
    """The optimizer that --optimizer names, over the named parameters of one stage.

    Weight decay for all, but for what --norm-weight-decay, --bias-weight-decay and
    --embedding-weight-decay say.
    """
    named = dict(parameters)
    groups, fused = _groups(config, named), _has_fused(named.values())
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    if config.optimizer == "rmsprop":
        return RMSprop(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            alpha=_RMSPROP_ALPHA,
            eps=_RMSPROP_EPS,
        )
    made = SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.optimizer == "sgd-nesterov",
        fused=fused,
    )
    if fused:
        made.register_step_pre_hook(begin_momenta)
    return made


def _has_fused(parameters: Collection[nn.Parameter]) -> bool | None:
    """Whether one kernel does a whole step; None leaves it to torch."""
    can = all(has_fused_step(p.device) and p.is_floating_point() for p in parameters)
    return True if parameters and can else None


def begin_momenta(optimizer: Optimizer, *_: object) -> None:
    """Gives a momentum of 0 to parameters whose first gradient comes later than that of others.

    Then the step leaves them the gradient, as if it had begun their momentum. The fused SGD takes
    momenta of all parameters or of none (a TypeError in torch 2.14.1).
    """
    for group in optimizer.param_groups:
        moved = [p for p in group["params"] if p.grad is not None] if group["momentum"] else []
        new = [p for p in moved if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        for parameter in new if len(new) < len(moved) else []:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _groups(config: TrainConfig, named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """The groups, by weight decay."""
    # A stage may have no parameters at all; torch takes that as a group, not as an empty list.
    if not named:
        return [{"params": []}]
    members: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        members.setdefault(_decay(config, name, named), []).append(parameter)
    return [{"params": found, "weight_decay": decay} for decay, found in members.items()]


def _decay(config: TrainConfig, name: str, named: Mapping[str, nn.Parameter]) -> float:
    if config.bias_weight_decay != AS_ALL and name.rpartition(".")[2] == "bias":
        return config.bias_weight_decay
    if config.embedding_weight_decay != AS_ALL and name.rpartition(".")[2] in _EMBEDDINGS:
        return config.embedding_weight_decay
    if config.norm_weight_decay != AS_ALL and _is_of_norm(name, named):
        return config.norm_weight_decay
    return config.weight_decay


def _is_of_norm(name: str, named: Mapping[str, nn.Parameter]) -> bool:
    """Whether a parameter is of a norm: its module has a scale for each feature, and no matrix."""
    last = name.rpartition(".")[2]
    owner = name[: len(name) - len(last)]
    weight, bias = named.get(f"{owner}weight"), named.get(f"{owner}bias")
    if weight is None or last not in ("weight", "bias"):
        return False
    return weight.ndim == 1 or (bias is not None and bias.shape == weight.shape)


def check_optimizer(optimizer: object, stage: nn.Module) -> None:
    """Raises ConfigError for an optimizer that no bundle can use."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"the recipe's optimizer() gives {name}, not a torch.optim.Optimizer; give one over "
            "the parameters that it gets"
        )
    # LBFGS: each call of the closure would be a whole step of the bundle.
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"the optimizer {name} runs the model several times in a step (its step needs a "
            "closure), which bundles cannot do; use one that does not, such as AdamW"
        )
    if isinstance(optimizer, SparseAdam):
        raise ConfigError(
            f"the optimizer {name} takes sparse gradients only, and gradients are summed dense; "
            "use Adam or AdamW, for which an embedding may stay sparse=True"
        )
    # What `optimizer_tensors` does not see would be lost with the first restart.
    extra = optimizer.state_dict().keys() - {"state", "param_groups"}
    if extra:
        raise ConfigError(
            f"the optimizer {name} keeps {min(extra)!r} next to its state and groups, which no "
            "checkpoint would have; let it keep that in `state`, with a parameter"
        )
    # Gradients are summed for the stage's parameters only: others would drift apart.
    own = set(stage.parameters())
    strangers = [p for group in optimizer.param_groups for p in group["params"] if p not in own]
    if strangers:
        raise ConfigError(
            f"the optimizer {name} has {len(strangers)} parameters that are not the model's, such "
            f"as one of shape {list(strangers[0].shape)}: no other bundle would hear of them; make "
            "them part of the model"
        )


def check_same_optimizer(before: str, optimizer: Optimizer) -> None:
    """Raises ConfigError where the state to resume from is of an optimizer of another class.

    Args:
        before: the name of its class; empty: not known.
        optimizer: of this run.
    """
    now = type(optimizer).__name__
    if before not in ("", now):
        raise ConfigError(
            f"the state to resume from is of the optimizer {before}, and this run has {now}; "
            f"resume with {before} (--optimizer, or the recipe's optimizer), or start again in "
            "another --run-dir, with weights that `bundlerun export` takes out"
        )
