"""Steps for parts of the parameters are together one of the whole, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.optim.parts import step_of, why_not_in_parts
from bundlerun.workers.optimizer import make_optimizer


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 6), nn.Linear(6, 2))


def ours(**changes: Any) -> Callable[[nn.Module], Optimizer]:
    config = TrainConfig(data="synthetic", weight_decay=0.1, norm_weight_decay=0.0, **changes)
    return lambda own: make_optimizer(config, own.named_parameters())


def torchs(kind: Any, **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda own: kind(own.parameters(), lr=0.01, **settings)


@pytest.mark.parametrize(
    "make",
    [
        ours(momentum=0.9),
        ours(optimizer="adamw"),
        ours(optimizer="rmsprop"),
        torchs(optim.SGD, momentum=0.9, nesterov=True, foreach=False),
        *(
            torchs(kind)
            for kind in (
                *(optim.Adam, optim.Adamax, optim.NAdam, optim.RAdam, optim.Adagrad),
                *(optim.Adadelta, optim.ASGD, optim.Rprop, optim.Adafactor),
            )
        ),
    ],
)
def test_parts_are_together_the_whole(make: Callable[[nn.Module], Optimizer]) -> None:
    whole, parts = model(), model()
    of_whole, of_parts = make(whole), make(parts)
    assert why_not_in_parts(of_parts) == ""
    for step in range(6):
        for own in (whole, parts):
            torch.manual_seed(step)
            for index, parameter in enumerate(own.parameters()):
                # One of them is not used in each step, and another only later on.
                is_used = index != step % 3 and (index != 5 or step > 2)
                parameter.grad = torch.randn_like(parameter) if is_used else None
        of_whole.step()
        left = list(parts.parameters())[::-1]
        for part in (left[:2], left[2:3], left[3:]):
            step_of(of_parts, part)
    pairs = zip(whole.parameters(), parts.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert [len(g["params"]) for g in of_parts.param_groups] == [
        len(g["params"]) for g in of_whole.param_groups
    ]


def test_an_error_leaves_the_groups_whole() -> None:
    own = model()
    optimizer = optim.SGD(own.parameters(), lr=0.1)
    first = next(own.parameters())
    first.grad = torch.zeros_like(first).to_sparse()
    optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step_of(optimizer, [first])
    assert len(optimizer.param_groups[0]["params"]) == 8


class OwnSGD(optim.SGD):
    """May do anything."""


def test_optimizers_that_may_mix_parameters_are_named() -> None:
    own = model()
    assert "OwnSGD" in why_not_in_parts(OwnSGD(own.parameters(), lr=0.1))
    assert "LBFGS" in why_not_in_parts(optim.LBFGS(own.parameters()))
    hooked = optim.SGD(own.parameters(), lr=0.1)
    hooked.register_step_post_hook(lambda *_: None)
    assert "hooked" in why_not_in_parts(hooked)
    scheduled = optim.SGD(own.parameters(), lr=0.1)
    optim.lr_scheduler.LambdaLR(scheduled, lambda _: 1.0)
    assert "hooked" in why_not_in_parts(scheduled)
