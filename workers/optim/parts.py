"""An optimizer's step for some of its parameters only, as if each had one of its own."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as of_torch

from bundlerun.workers.optimizer import begin_momenta

_BY_PARAMETER = frozenset(
    {
        *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"),
        *("ASGD", "Rprop", "Adafactor"),
    }
)
"""Those of torch that treat each parameter by its own gradient and state alone."""


def why_not_in_parts(optimizer: Optimizer) -> str:
    """Why its steps cannot be done a part at a time; empty: they can."""
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] != "torch" or kind.__name__ not in _BY_PARAMETER:
        return (
            f"the optimizer {kind.__name__} is not known to treat each parameter by itself, as "
            "those of torch do (SGD, AdamW and others)"
        )
    tables = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        of_torch._global_optimizer_pre_hooks,
        of_torch._global_optimizer_post_hooks,
    )
    is_hooked = any(hook is not begin_momenta for table in tables for hook in table.values())
    if is_hooked or "step" in vars(optimizer):
        return f"something is hooked to the steps of the optimizer {kind.__name__}"
    return ""


def step_of(optimizer: Optimizer, parameters: Collection[nn.Parameter]) -> None:
    """A step for `parameters` only; together with steps for all others it is one of the whole."""
    wanted = set(map(id, parameters))
    whole = [group["params"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) in wanted]
        # Wherever it is called from: no forward's precision is for it.
        with torch.autocast("cpu", enabled=False):
            optimizer.step()
    finally:
        for group, all_of_it in zip(optimizer.param_groups, whole, strict=True):
            group["params"] = all_of_it
