"""Whoever reads a parameter is seen before it does, by whatever way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch

from bundlerun.workers.overlap.reads import watched

X = torch.ones(2, 4)


class _Foreign(torch.autograd.Function):
    """Code that is not torch's: no function of torch gets the parameter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class Foreign(nn.Module):
    """Reads its weight in there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Foreign.apply(x, self.weight)
        return found


def attention() -> tuple[nn.Module, Callable[[], object]]:
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    return module, lambda: module(X[None], X[None], X[None])


def by_hand() -> tuple[nn.Module, Callable[[], object]]:
    module = nn.Linear(4, 4)
    return module, lambda: nn.functional.linear(X, weight=module.weight, bias=module.bias)


def stacked() -> tuple[nn.Module, Callable[[], object]]:
    module = nn.ParameterList([torch.ones(4), torch.ones(4)])
    return module, lambda: torch.stack([p for p in module])


def scripted() -> tuple[nn.Module, Callable[[], object]]:
    module = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), X)
    return module, lambda: module(X)


def of(module: nn.Module) -> Callable[[], tuple[nn.Module, Callable[[], object]]]:
    return lambda: (module, lambda: module(X))


@pytest.mark.parametrize(
    "make",
    [
        of(nn.Linear(4, 4)),
        of(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
        of(nn.GRU(4, 4)),
        of(Foreign()),
        of(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        attention,
        by_hand,
        stacked,
        scripted,
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_all_parameters_are_seen_before_they_are_read(
    make: Callable[[], tuple[nn.Module, Callable[[], object]]],
) -> None:
    module, act = make()
    awaited = set(map(id, module.parameters()))

    def read(parameter: Tensor) -> None:
        # As the optimizer does: a read before would have found another number.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            parameter.zero_()
        awaited.discard(id(parameter))

    assert awaited
    with watched(awaited, read):
        act()
    assert not awaited
    assert all(not p.any() for p in module.parameters())


def test_what_is_not_awaited_is_not_told_and_nothing_stays() -> None:
    module, told = nn.Linear(4, 4), []
    with watched({id(module.bias)}, told.append):
        module(X)
    assert told
    assert all(parameter is module.bias for parameter in told)
    told.clear()
    module(X)
    assert not told
    assert not of_torch._global_forward_pre_hooks


def test_an_error_in_the_forward_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError), watched({1}, lambda _: None):
        nn.Linear(4, 4)(torch.ones(5))
    assert not of_torch._global_forward_pre_hooks
    assert not torch._C._len_torch_function_stack()
