"""A small model around something that a forward does, for the tests of what a cut keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bundlerun.splits.graph.model import cut_model
from tests.unit.splits.stage_chain import assert_same, run_chain, run_whole

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A front, something in between, a rear."""

    def __init__(self, body: Body | nn.Module) -> None:
        super().__init__()
        self.front = nn.Linear(4, 4)
        self.mid = nn.Linear(4, 4)
        self.rear = nn.Linear(4, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        x = self.body(x) if isinstance(self.body, nn.Module) else self.body(self, x)
        return self.rear(x)


class Inside(nn.Module):
    """The same as a submodule."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.mid = nn.Linear(4, 4)
        self.own = body

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def assert_kept(model: nn.Module, cuts: list[str], *, training: bool = True) -> None:
    model.train(training)
    whole = copy.deepcopy(model)
    image = torch.randn(5, 4)
    for cut in cuts:
        model.zero_grad()
        whole.zero_grad()
        stages = cut_model(model, [cut])
        assert_same(run_chain(stages, image), run_whole(whole, image))
    assert torch.is_grad_enabled()


def fixed_features(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.tanh(net.mid(x))
    return x + y
