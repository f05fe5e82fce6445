"""Models for counting: layers enough to show what is done for each of them."""

from __future__ import annotations

from torch import nn

NUM_LAYERS = 8


def normed(num_outputs: int) -> nn.Module:
    """Convolutions with batch norms, as a ResNet has them."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, stride=4)]
    for _ in range(NUM_LAYERS):
        layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_outputs))
