"""A model of your own: `--model examples/my_model.py:build`, or `:build_stages` already cut.

    bundlerun run --devices cpu --slots 2 --model examples/my_model.py:build --cut blocks.2 DATA

`build` returns a whole model, which is cut by name. `build_stages` returns its stages, which need
not be traceable.
"""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the shape of `x`, (batch, width, height, width of the image)."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(out)))


class SmallNet(nn.Module):
    """Four residual blocks between a stem and a classifier."""

    def __init__(self, num_outputs: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(4)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_outputs) of images (batch, 3, height, width)."""
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def build(num_outputs: int) -> nn.Module:
    """The whole model."""
    return SmallNet(num_outputs)


def build_stages(num_outputs: int) -> list[nn.Module]:
    """The same model in two stages."""
    net = SmallNet(num_outputs)
    front = nn.Sequential(net.stem, net.blocks[0], net.blocks[1])
    rear = nn.Sequential(net.blocks[2], net.blocks[3], net.pool, nn.Flatten(), net.head)
    return [front, rear]
