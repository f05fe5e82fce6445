"""Hooks, and other functions of the user's that the modules of a model carry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.splits.replay.model import ReplayedModel
from tests.unit.splits.replay.chain import (
    Layers,
    assert_same,
    checkpointed,
    example,
    layers,
    subject_of,
)

CUTS = [("second",), ("third",), ("second", "third")]


def in_turn(m: Layers, x: Tensor) -> Tensor:
    return m.third(torch.tanh(m.second(torch.tanh(m.first(x)))))


def before(m: Layers) -> None:
    for module in (m.first, m.second, m.third):
        module.register_forward_pre_hook(lambda _, args: (args[0] * 2,))


def behind(m: Layers) -> None:
    for module in (m.first, m.second, m.third):
        module.register_forward_hook(lambda _, args, result: result + args[0])


def backward(m: Layers) -> None:
    for scale, module in enumerate((m.first, m.second, m.third), 2):

        def scaled(_: nn.Module, given: Any, got: Any, scale: int = scale) -> Any:
            return None if given[0] is None else (given[0] * scale,)

        module.register_full_backward_hook(scaled)


def before_backward(m: Layers) -> None:
    for module in (m.second, m.third):
        module.register_full_backward_pre_hook(lambda _, got: (got[0] * 2,))


@pytest.mark.parametrize("hooks", [before, behind, backward, before_backward])
@pytest.mark.parametrize("cuts", CUTS, ids=["second", "third", "both"])
def test_hooks_of_modules_run_in_the_stage_of_the_module(
    hooks: Callable[[Layers], None], cuts: tuple[str, ...]
) -> None:
    model = layers(in_turn)
    hooks(model)
    subject = subject_of(model, (example(),), cuts)
    assert_same(subject, (example(),))
    assert_same(subject, (example(5),))


def test_a_hook_for_the_backward_is_called_once_for_each_of_them() -> None:
    model = layers(in_turn)
    seen: list[object] = []
    model.first.register_full_backward_hook(lambda *_: seen.append(1))
    front, rear = subject_of(model, (example(),), ("third",)).stages
    for number in range(1, 3):
        sent = front(example())
        rear(*sent).sum().backward()
        assert len(seen) == number


class Dropping(Layers):
    def __init__(self) -> None:
        super().__init__(in_turn)
        self.drop = nn.Dropout(0.5)


def by_hook(m: Dropping) -> None:
    m.second.register_forward_hook(lambda _, args, result: m.drop(result))


def by_attribute(m: Dropping) -> None:
    middle = lambda x: m.drop(m.second(x))  # noqa: E731 - as users write it
    m.own = lambda _, x: m.third(middle(m.first(x)))


def by_default(m: Dropping) -> None:
    def dropped(_: nn.Module, args: Any, result: Tensor, *, drop: nn.Module = m.drop) -> Tensor:
        return drop(result)  # type: ignore[no-any-return]

    m.second.register_forward_hook(partial(dropped))


def by_wrapping(m: Dropping) -> None:
    own = m.second.forward
    m.second.forward = lambda x: checkpointed(lambda y: m.drop(own(y)), x)  # type: ignore


def by_method(m: Dropping) -> None:
    own = m.second.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return m.drop(own(x)) * len(list(self.parameters()))  # type: ignore[no-any-return]

    m.second.forward = MethodType(forward, m.second)  # type: ignore[method-assign]


@pytest.mark.parametrize("functions", [by_hook, by_attribute, by_default, by_wrapping, by_method])
@pytest.mark.parametrize("cuts", CUTS, ids=["second", "third", "both"])
def test_functions_that_refer_to_the_model_refer_to_that_of_their_stage(
    functions: Callable[[Dropping], None], cuts: tuple[str, ...]
) -> None:
    model = Dropping().double()
    functions(model)
    subject = subject_of(model, (example(),), cuts)
    assert_same(subject, (example(),))
    # In evaluation by the mode of the stage, whatever that of the model is.
    model.train()
    for stage in subject.stages:
        stage.eval()
    with torch.no_grad():
        results = [_whole(subject.stages, example()) for _ in range(2)]
    assert torch.equal(*results)


def _whole(stages: Any, x: Tensor) -> Tensor:
    sent: Any = (x,)
    for stage in stages[:-1]:
        sent = stage(*sent)
    made: Tensor = stages[-1](*sent)
    return made


def test_attributes_that_hold_themselves_are_no_trouble() -> None:
    model = layers(in_turn)
    tree: dict[str, object] = {"drop": lambda x: model.second(x)}
    tree["tree"] = [tree]
    model.tree = tree  # type: ignore[assignment]
    assert_same(subject_of(model, (example(),), ("second",)), (example(),))


def test_what_several_functions_share_they_share_in_a_copy() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        made: Tensor = m.third(m.second(m.first(x))) + kept["first"]
        return made

    kept: dict[str, Tensor] = {}
    model = layers(forward)

    def keep(module: nn.Module, args: Any, result: Tensor) -> None:
        assert module is not model
        kept["first"] = result

    model.first.register_forward_hook(keep)
    subject = subject_of(model, (example(),), ("second",))
    assert_same(subject, (example(),))
    assert ReplayedModel(model, (example(),)).names == ["second", "third"]
