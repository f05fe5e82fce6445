"""VGG: cut between its five convolution blocks, each of which ends with a pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models import VGG

from bundlerun.splits.balance import balanced_cuts


def is_vgg(model: nn.Module) -> bool:
    """Whether `model` is of the family."""
    return isinstance(model, VGG)


def named_cuts(model: nn.Module) -> dict[str, str]:
    """`block2` to `block5`, whose module numbers depend on the depth, and `head`."""
    cuts = {f"block{i + 2}": name for i, name in enumerate(_starts(model))}
    return {**cuts, "head": "avgpool"}


def default_cuts(model: nn.Module, shares: Sequence[float]) -> tuple[str, ...]:
    """Cuts between blocks into parts with these shares of the work; nothing for more than five."""
    starts = _starts(model)
    if len(shares) > len(starts) + 1:
        return ()
    cuts = balanced_cuts(_block_costs(model), len(shares), shares)
    return tuple(starts[i - 1] for i in cuts)


def _features(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.get_submodule("features").named_children())


def _starts(model: nn.Module) -> list[str]:
    """The first module of each block but the first."""
    names = [name for name, _ in _features(model)]
    pools = [i for i, (_, m) in enumerate(_features(model)) if isinstance(m, nn.MaxPool2d)]
    return [f"features.{names[i + 1]}" for i in pools if i + 1 < len(names)]


def _block_costs(model: nn.Module) -> list[float]:
    """Multiplications of each block, in units of the image's area."""
    costs, area = [0.0], 1.0
    for _, module in _features(model):
        if isinstance(module, nn.Conv2d):
            costs[-1] += module.weight.numel() * area
        elif isinstance(module, nn.MaxPool2d):
            costs.append(0.0)
            area /= 4
    return costs[:-1] if costs[-1] == 0 else costs
