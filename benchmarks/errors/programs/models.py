"""Models with a fault each, small ones; `net` has none."""

from __future__ import annotations

import random
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, num_outputs: int, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)
        self.c = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        made: Tensor = self.c(self.b(self.a(x)).mean((2, 3)))
        return made


class _Reads(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.mean() > 0:
            y = y * 2
        made: Tensor = self.c(self.b(y).mean((2, 3)))
        return made


class _Drops(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.training and random.random() < 0.5:
            y = self.b(y)
        made: Tensor = self.c(y.mean((2, 3)))
        return made


class _Twins(Net):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.first = nn.Linear(3, 3)
        self.c = nn.Linear(3, 3)
        self.c.weight.data = self.first.weight.data

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.c(self.first(x.mean((2, 3))).tanh())
        return made


class _Buffer(Net):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("scale")
        y = self.b(self.a(x)).mean((2, 3)) * scale
        made: Tensor = self.c(y * scale.sum())
        return made * scale.sum()


class _Recomputes(Net):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return made


class _Moody(Net):
    times = 0

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.times += 1
        self.b.train(self.times % 3 == 0)
        return self


class Words(nn.Module):
    """The next word, by the last one alone."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(num_outputs, 8), nn.Linear(8, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary)."""
        made: Tensor = self.head(self.words(x))
        return made


class _Boxes(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError  # no case comes so far


class _Pixels(Net):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.c(x.movedim(1, 3)).movedim(3, 1)
        return made


def net(num_outputs: int) -> nn.Module:
    """Nothing is wrong with it."""
    return Net(num_outputs)


def wide(num_outputs: int) -> nn.Module:
    """Another one."""
    return Net(num_outputs, width=8)


def reads(num_outputs: int) -> nn.Module:
    """Goes by a number of its tensors."""
    return _Reads(num_outputs)


def drops(num_outputs: int) -> nn.Module:
    """Leaves a layer out by chance."""
    return _Drops(num_outputs)


def twins(num_outputs: int) -> nn.Module:
    """Two parameters are one memory."""
    return _Twins(num_outputs)


def buffer(num_outputs: int) -> nn.Module:
    """Uses a buffer at its begin and its end."""
    return _Buffer(num_outputs)


def recomputes(num_outputs: int) -> nn.Module:
    """Is computed again, whole, in the backward."""
    return _Recomputes(num_outputs)


def moody(num_outputs: int) -> nn.Module:
    """Has another layer in evaluation each time."""
    return _Moody(num_outputs)


def listed(num_outputs: int) -> list[nn.Module]:
    """Three stages."""
    return [nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.Linear(4, num_outputs)]


def untrained(num_outputs: int) -> nn.Module:
    """All is frozen."""
    return Net(num_outputs).requires_grad_(False)


def lazy(num_outputs: int) -> nn.Module:
    """Has a layer that waits for its first input."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_outputs))


def nothing(num_outputs: int) -> None:
    """The return was forgotten."""
    Net(num_outputs)


def wants(num_outputs: int, extra: int) -> nn.Module:
    """Nobody gives it `extra`."""
    return Net(num_outputs, extra)


def fails(num_outputs: int) -> nn.Module:
    """Raises."""
    raise RuntimeError("the weights are gone")


def words(num_outputs: int) -> nn.Module:
    """A language model."""
    return Words(num_outputs)


def pixels(num_outputs: int) -> nn.Module:
    """A class for each pixel."""
    model = _Pixels(num_outputs)
    model.c = nn.Linear(3, num_outputs)
    return model


def boxes(num_outputs: int) -> nn.Module:
    """Stands for a detector."""
    return _Boxes(num_outputs)
