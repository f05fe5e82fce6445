"""Small models of the kinds that torchvision's recipes train: convolutions, and a transformer."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer


def convolutions(num_outputs: int) -> nn.Module:
    """Of any size of image."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_outputs),
    )


def transformer(num_outputs: int) -> nn.Module:
    """Of images of 32 x 32."""
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
        num_classes=num_outputs,
    )  # fmt: skip
