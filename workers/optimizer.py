"""The optimizers that the options name, and what a recipe's own has to be."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer, SparseAdam

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError


def make_optimizer(
    config: TrainConfig, parameters: Iterable[tuple[str, nn.Parameter]]
) -> Optimizer:
    """SGD with momentum, or AdamW, over the named parameters of one stage; weight decay for all."""
    # A stage may have no parameters at all; torch takes that as a group, not as an empty list.
    groups = [{"params": [parameter for _, parameter in parameters]}]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


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
