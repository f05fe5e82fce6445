"""ResNet, ResNeXt and Wide ResNet: cut between residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models import ResNet

from bundlerun.splits.balance import balanced_cuts

_LAYERS = ("layer1", "layer2", "layer3", "layer4")


def is_resnet(model: nn.Module) -> bool:
    """Whether `model` is of the family."""
    return isinstance(model, ResNet)


def named_cuts(model: nn.Module) -> dict[str, str]:
    """The cuts that have a name of their own; `layer1` to `layer4` are module names anyway.

    Returns:
        `half`: the middle of the work; `head`: the classifier with its pooling.
    """
    return {"half": default_cuts(model, (1, 1))[0], "head": "avgpool"}


def default_cuts(model: nn.Module, shares: Sequence[float]) -> tuple[str, ...]:
    """Cuts into parts with these shares of the work; nothing where there are too few blocks."""
    names, costs = _block_costs(model)
    if len(shares) > len(costs):
        return ()
    return tuple(names[i].removesuffix(".0") for i in balanced_cuts(costs, len(shares), shares))


def _block_costs(model: nn.Module) -> tuple[list[str], list[float]]:
    """Name and multiplications, in units of the image's area, of the stem and of each block."""
    stem, area = _convolutions(model.get_submodule("conv1"), 1.0)
    names, costs, area = ["conv1"], [stem], area / 4  # max pooling halves both sides
    for layer in _LAYERS:
        for index, block in model.get_submodule(layer).named_children():
            cost, area = _convolutions(block, area)
            names.append(f"{layer}.{index}")
            costs.append(cost)
    return names, costs


def _convolutions(module: nn.Module, area: float) -> tuple[float, float]:
    """Multiplications of a block whose input has `area`, and the area of its output."""
    cost = 0.0
    for name, conv in module.named_modules():
        if isinstance(conv, nn.Conv2d):
            # The shortcut comes last and is parallel to the others: its output has their area.
            area /= 1 if name.startswith("downsample") else conv.stride[0] ** 2
            cost += conv.weight.numel() * area
    return cost, area
