"""Short forms of gradients on the wire."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.choices import BLOCK_NUMBERS, EXCHANGE_SHARE, ExchangeDtype
from bundlerun.workers.sync.short.codes import Code, code_of

SHORT: tuple[ExchangeDtype, ...] = ("bfloat16", "int8", "int4")
BLOCKS: tuple[ExchangeDtype, ...] = ("int8", "int4")
MOST = {"int8": 127, "int4": 7}


def made(form: ExchangeDtype) -> Code:
    code = code_of(form)
    assert code is not None
    return code


def travelled(code: Code, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """What arrives, and what is left."""
    left, out = numbers.clone(), torch.empty_like(numbers)
    wire = torch.full((code.length(numbers.numel()),), 3).to(code.dtype)
    code.write(left, wire)
    code.read(wire, out)
    return out, left


def test_float32_travels_as_it_is() -> None:
    assert code_of("float32") is None


@pytest.mark.parametrize("form", SHORT)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 300, 1000])
def test_what_arrives_and_what_is_left_are_the_numbers(form: ExchangeDtype, count: int) -> None:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(count))
    arrived, left = travelled(made(form), numbers)
    torch.testing.assert_close(arrived + left, numbers, rtol=1e-6, atol=1e-7)
    assert left.any()


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("largest", [1e-30, 1e-8, 1.0, 3.3, 1e30])
def test_each_block_is_rounded_to_its_own_step(form: ExchangeDtype, largest: float) -> None:
    block = BLOCK_NUMBERS[form]
    numbers = torch.rand(3 * block, generator=torch.Generator().manual_seed(1)) * 2 - 1
    numbers[block] = -1.0
    numbers *= torch.tensor([1.0, largest, 0.0]).repeat_interleave(block)
    arrived, left = travelled(made(form), numbers)
    step = 1.02 * largest / MOST[form]
    assert float(left[block : 2 * block].abs().max()) <= 0.5 * step
    assert float(arrived[block]) == pytest.approx(-largest, rel=0.02)
    assert not arrived[2 * block :].any()


@pytest.mark.parametrize("form", BLOCKS)
def test_every_whole_number_of_steps_arrives(form: ExchangeDtype) -> None:
    most, block = MOST[form], BLOCK_NUMBERS[form]
    steps = torch.arange(1 - most, most).float()
    numbers = torch.cat([steps, torch.zeros(-len(steps) % (block - 1))]).view(-1, block - 1)
    # The first of each block is the largest: the step is 1.
    largest = torch.full((len(numbers), 1), most - 0.02)
    arrived, left = travelled(made(form), torch.cat([largest, numbers], 1).view(-1))
    assert torch.equal(arrived.view(-1, block)[:, 1:], numbers)
    assert not left.view(-1, block)[:, 1:].any()


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5, 130])
def test_what_is_not_finite_arrives_so(form: ExchangeDtype, wrong: float, place: int) -> None:
    numbers = torch.ones(131)
    numbers[place] = wrong
    arrived, _ = travelled(made(form), numbers)
    assert not math.isfinite(float(arrived[place]))
    clean = [i for i in (0, 130) if i // BLOCK_NUMBERS[form] != place // BLOCK_NUMBERS[form]]
    assert bool(arrived[clean].isfinite().all())


@pytest.mark.parametrize("form", BLOCKS)
def test_numbers_too_small_for_a_step_wait(form: ExchangeDtype) -> None:
    numbers = torch.full((64,), 1e-38)
    arrived, left = travelled(made(form), numbers)
    assert not arrived.any()
    assert torch.equal(left, numbers)


@pytest.mark.parametrize("form", get_args(ExchangeDtype))
def test_the_plan_knows_the_bytes(form: ExchangeDtype) -> None:
    code = code_of(form)
    count = 1 << 16
    length = 4 * count if code is None else code.length(count) * code.dtype.itemsize
    assert length / (4 * count) == pytest.approx(EXCHANGE_SHARE[form], rel=1e-3)


def test_only_what_can_be_added_says_so() -> None:
    assert [made(form).can_add for form in SHORT] == [True, False, False]
