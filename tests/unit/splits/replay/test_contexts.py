"""Cuts inside of `with` statements: stages before and behind are in them, and leave them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.splits.replay.chain import (
    Layers,
    assert_same,
    checkpointed,
    example,
    layers,
    subject_of,
)


def in_no_grad(m: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.second(m.first(x))
    return m.third(y)


def in_turns(m: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.first(x)
        with torch.enable_grad():
            z = m.second(y)
            with torch.no_grad():
                w = m.third(z)
    return w + z


def asks_for_mode(m: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.first(x)
        if torch.is_grad_enabled():
            y = y * 3
        z = m.second(y)
    return m.third(z)


def in_decorated(m: Layers, x: Tensor) -> Tensor:
    @torch.no_grad()
    def features(x: Tensor) -> Iterator[Tensor]:
        for layer in (m.first, m.second):
            x = layer(x)
            yield x

    return m.third(sum(features(x), torch.zeros(4).double()))


def in_no_grad_recomputed(m: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = checkpointed(m.second, m.first(x))
    return checkpointed(m.third, y)


def in_profile(m: Layers, x: Tensor) -> Tensor:
    with torch.profiler.record_function("front"):
        y = m.first(x)
        with torch.profiler.record_function("middle"):
            z = m.second(y)
    return m.third(z)


def calls_at_the_end(m: Layers, x: Tensor) -> Tensor:
    @contextmanager
    def borrowed() -> Iterator[Tensor]:
        weight = m.second.weight.detach() * 2
        try:
            yield weight
        finally:
            weight.norm().log()

    with borrowed() as weight:
        y = m.second(m.first(x) @ weight)
    return m.third(y)


def in_inference(m: Layers, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = m.second(m.first(x)).relu_()
    return m.third(y.clone())


def in_half_from_the_second_on(m: Layers, x: Tensor) -> Tensor:
    y = m.first(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        z = m.second(y)  # as the call before, but for the type of its result
        if torch.is_autocast_enabled("cpu"):
            z = z.to(torch.get_autocast_dtype("cpu"))
        w = m.third(z)
    return w.float() + z.float()


@pytest.mark.parametrize(
    "forward",
    [
        in_no_grad,
        in_turns,
        asks_for_mode,
        in_decorated,
        in_no_grad_recomputed,
        in_profile,
        calls_at_the_end,
        in_inference,
    ],
)
@pytest.mark.parametrize("cuts", [("second",), ("second", "third")], ids=["two", "three"])
def test_stages_cut_inside_are_the_model(forward: Any, cuts: tuple[str, ...]) -> None:
    subject = subject_of(layers(forward), (example(),), cuts)
    assert_same(subject, (example(),))
    assert_same(subject, (example(5),))


@pytest.mark.parametrize("cuts", [("third",), ("second", "third")], ids=["two", "three"])
def test_what_is_remembered_of_calls_is_not_taken_for_another_precision(
    cuts: tuple[str, ...],
) -> None:
    model = layers(in_half_from_the_second_on).float()
    assert_same(subject_of(model, (example(),), cuts), (example(),))


def test_a_stage_that_ends_where_gradients_are_off_leaves_them_as_they_were() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x)
        torch.set_grad_enabled(False)
        z = m.second(y)
        torch.set_grad_enabled(True)
        return m.third(z + y)

    front, _ = subject_of(layers(forward), (example(),), ("second",)).stages
    front(example())
    assert torch.is_grad_enabled()
