from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.splits.shared import shared_of
from tests.unit.splits.replay.chain import (
    Layers,
    assert_same,
    checkpointed,
    example,
    layers,
    subject_of,
)


class SignOfStraight(torch.autograd.Function):
    """The sign; its gradient as if it had done nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def skips(m: Layers, x: Tensor) -> Tensor:
    y = m.first(x)
    return m.third(torch.relu(m.second(y))) + y


def in_place(m: Layers, x: Tensor) -> Tensor:
    y = m.first(x)
    z = m.second(y)
    z += y
    z.mul_(2)
    return m.third(F.relu(z, inplace=True)) + z


def in_place_behind(m: Layers, x: Tensor) -> Tensor:
    y = m.second(m.first(x))
    z = m.third(y + 1)
    y += z
    return y * z


def drops(m: Layers, x: Tensor) -> Tensor:
    y = F.dropout(m.first(x), 0.5, m.training)
    return F.dropout(m.third(F.dropout(m.second(y), 0.3, m.training)), 0.5, m.training)


def draws(m: Layers, x: Tensor) -> Tensor:
    noise = torch.rand(x.shape, dtype=x.dtype) + torch.empty(4, dtype=x.dtype).normal_()
    return m.third(m.second(m.first(x) * noise)) + noise


def draws_into_zeros(m: Layers, x: Tensor) -> Tensor:
    table = torch.zeros(3, 4, dtype=x.dtype)
    table[:2] = m.first(x)[:2]
    return m.third(m.second(table)) + table


def straight_before(m: Layers, x: Tensor) -> Tensor:
    y = SignOfStraight.apply(m.first(x))
    return m.third(torch.relu(m.second(y)) + y)


def straight_across(m: Layers, x: Tensor) -> Tensor:
    y = m.first(x)
    z = m.third(m.second(y))
    made: Tensor = SignOfStraight.apply(y) + z
    return made


def under_vmap(m: Layers, x: Tensor) -> Tensor:
    y = torch.vmap(lambda row: row * row.sum())(m.first(x))
    mask = torch.vmap(lambda i: i < 2)(torch.arange(4))
    return m.third(m.second(y)) * mask + y


def recomputed(m: Layers, x: Tensor) -> Tensor:
    y = checkpointed(m.first, x)
    z = checkpointed(lambda a, b: m.second(a) + b, y, y.cos())
    return checkpointed(lambda a: m.third(a) + y, z)


def asks_for_type(m: Layers, x: Tensor) -> Tensor:
    y = m.first(x.to(next(m.parameters()).dtype))
    return m.third(m.second(y).to(next(m.second.parameters()).dtype))


def a_list(m: Layers, x: Tensor) -> Tensor:
    parts = list(m.first(x).split(2, dim=1))
    parts.append(m.second(x))
    return m.third(parts.pop()) + torch.cat(parts, 1)


def constants(m: Layers, x: Tensor) -> Tensor:
    places = torch.arange(4, dtype=x.dtype)
    y = m.first(x) + places
    z = m.second(y)
    places += 1
    return m.third(z) * places


def by_layer_drop(m: Layers, x: Tensor) -> Tensor:
    for layer in (m.first, m.second):
        if m.training and torch.rand([]) < 0.0:
            continue
        x = layer(x)
    return m.third(x)


def in_half(m: Layers, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.second(m.first(x.float()))
        z = m.third(y)
    return y + z


def without_gradient(m: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = m.first(x).abs().mean()
    return m.third(m.second(m.first(x)) * scale)


@pytest.mark.parametrize(
    "forward",
    [
        skips,
        in_place,
        in_place_behind,
        drops,
        draws,
        draws_into_zeros,
        straight_before,
        straight_across,
        under_vmap,
        recomputed,
        asks_for_type,
        a_list,
        constants,
        by_layer_drop,
        without_gradient,
    ],
)
@pytest.mark.parametrize("cuts", [("third",), ("second", "third")], ids=["two", "three"])
def test_stages_are_the_model(forward: Any, cuts: tuple[str, ...]) -> None:
    model, x = layers(forward), example()
    if forward is a_list:
        cuts = cuts[-1:]
    subject = subject_of(model, (x,), cuts)
    for _ in range(2):
        assert_same(subject, (x,))
    # Other numbers of samples, as at the end of an epoch.
    if forward is not draws_into_zeros:
        assert_same(subject, (example(5),))


def test_autocast_of_the_forward_is_kept() -> None:
    model = layers(in_half).float()
    assert_same(subject_of(model, (example(),), ("third",)), (example(),))


def test_chunks_take_turns() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).double()
    subject = subject_of(model, (example(),), ("1", "2", "3"), chunks=2)
    assert_same(subject, (example(),))
    assert [n for n, _ in subject.stages[0].named_parameters()] == [
        "0.weight", "0.bias", "2.weight", "2.bias",
    ]  # fmt: skip
    used = [len(list(subject.stages[0].chunk_modules(c))) for c in range(2)]
    assert used == [2, 2]


def test_a_stage_has_its_part_of_the_model_only_under_the_models_names() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    front, rear = ReplayedModel(model, (torch.zeros(2, 3, 32, 32),)).cut(["layer3"])
    whole = dict(model.named_parameters())
    for stage in (front, rear):
        assert all(whole[name] is p for name, p in stage.named_parameters())
        assert not any(t.is_meta for t in stage.state_dict().values())
    assert {*front.state_dict(), *rear.state_dict()} == {*model.state_dict()}
    assert not {*front.state_dict()} & {*rear.state_dict()}
    rear(*front(torch.zeros(2, 3, 32, 32)))
    others = [weakref.ref(p) for p in front.parameters()]
    # Nothing keeps the others' numbers once the model is let go.
    del whole, front, model, stage
    gc.collect()
    assert [ref for ref in others if ref() is not None] == []


def test_modes_types_and_batch_norms_follow_the_model() -> None:
    model = torchvision.models.resnet18(num_classes=4)
    x = torch.randn(4, 3, 32, 32)
    subject = subject_of(model, (x,), ("layer2", "layer3.1.conv2"))
    assert_same(subject, (x,))
    for stage in subject.stages:
        stage.double()
        stage.eval()
    double = x.double()
    subject.stages[0](double)
    inputs: Any = (double,)
    with torch.no_grad():
        for stage in subject.stages:
            inputs = stage(*inputs)
    torch.testing.assert_close(inputs, model.double().eval()(double))


def test_a_model_that_takes_another_way_than_when_it_was_cut_is_refused_where_it_does() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.is_odd = False

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            if self.is_odd:
                y = y.cos()
            made: Tensor = self.second(y)
            return made

    model = Counting().double()
    subject = subject_of(model, (example(),), ("second",))
    for stage in subject.stages:
        vars(stage)["replica"].is_odd = True
    with pytest.raises(ConfigError, match=r"at .*test_stage.py:\d+ it calls 'cos'"):
        subject.stages[0](example())


def tied(m: Layers, x: Tensor) -> Tensor:
    return m.third(m.second(m.first(x)))


def test_a_tied_parameter_is_in_both_stages_under_all_its_names() -> None:
    model = layers(tied)
    model.third.weight = model.first.weight
    subject = subject_of(model, (example(),), ("second",))
    assert_same(subject, (example(),))
    for stage in subject.stages:
        assert {"first.weight", "third.weight"} <= {*stage.state_dict()}
        assert [shared.names for shared in shared_of(stage)] == [("first.weight", "third.weight")]
    assert "third.bias" not in subject.stages[0].state_dict()
