"""ResNet-18 with as many layers and parameters' names, and hardly anything to compute."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import resnet18

CHANNELS = 8


def build(num_outputs: int) -> nn.Module:
    """The model: each convolution, norm and linear layer has at most `CHANNELS` channels."""
    model: nn.Module = resnet18(num_classes=num_outputs)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            thin = _thin(layer)
            if thin is not None:
                setattr(parent, name, thin)
    return model


def _thin(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.Conv2d):
        same: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")
        }
        return nn.Conv2d(min(layer.in_channels, CHANNELS), CHANNELS, bias=False, **same)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(CHANNELS)
    if isinstance(layer, nn.Linear):
        return nn.Linear(CHANNELS, layer.out_features)
    return None
