"""What a step costs beside its passes: the optimizer, and its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.planning.model_costs import UpdateCosts
from bundlerun.splits.profile.clock import Clock
from bundlerun.splits.profile.ledger import Ledger
from bundlerun.splits.shared import model_parameters
from bundlerun.workers.optimizer import check_optimizer
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.values.norms import norms_of

_TIMES = 3


def update_costs(
    config: TrainConfig, recipe: Recipe, model: nn.Module, clock: Clock | None
) -> UpdateCosts:
    """The optimizer's state, what its step needs beside, and how long that takes.

    Changes the parameters of the model.

    Args:
        config: of the run.
        recipe: has the optimizer.
        model: has gradients; without numbers, where there is no clock.
        clock: of its device; None: nothing is timed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    num_bytes = sum(p.nbytes for p in trained)
    if not num_bytes:
        return UpdateCosts()
    optimizer = recipe.optimizer(model_parameters(model))
    check_optimizer(optimizer, model)
    seconds = [_timed(lambda: _update(config, trained, optimizer), clock) for _ in range(_TIMES)]
    # Next to each parameter; counters of steps are no part of it.
    leaves = [
        leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)
    ]
    state = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    average = num_bytes if config.model_ema else 0
    gradients = [p.grad for p in trained if p.grad is not None]
    with Ledger([*trained, *gradients, *leaves], given=()) as ledger:
        _update(config, trained, optimizer)
    return UpdateCosts(
        state_share=(state + average) / num_bytes,
        working_share=ledger.peaks(0)[0] / num_bytes,
        update_s_per_byte=min(seconds) / num_bytes,
    )


def _update(config: TrainConfig, trained: list[nn.Parameter], optimizer: Optimizer) -> None:
    gradients = [p.grad for p in trained if p.grad is not None]
    with torch.no_grad():
        if config.clip_norm or config.on_nan == "skip":
            norms_of(gradients)
        if config.clip_norm and gradients:
            torch._foreach_mul_(gradients, 1.0)
    optimizer.step()
    # A run empties its buckets; the same bytes are written.
    with torch.no_grad():
        if gradients:
            torch._foreach_zero_(gradients)


def _timed(run: Callable[[], None], clock: Clock | None) -> float:
    if clock is None:
        run()
        return 0.0
    start = clock.mark()
    run()
    (seconds,) = clock.seconds([start, clock.mark()])
    return seconds
