"""Short forms of gradients on the wire."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bundlerun.launcher.choices import BLOCK_NUMBERS, ExchangeDtype
from bundlerun.launcher.layout.exchange_form import EXACT, TOP_BLOCK, ExchangeForm
from bundlerun.workers.sync.short.codes import Code, code_of

SHORT: tuple[ExchangeDtype, ...] = ("bfloat16", "int8", "int4")
BLOCKS: tuple[ExchangeDtype, ...] = ("int8", "int4")
MOST = {"int8": 127, "int4": 7}


def made(form: ExchangeDtype | ExchangeForm) -> Code:
    code = code_of(ExchangeForm(form) if isinstance(form, str) else form)
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
    assert code_of(EXACT) is None


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


@pytest.mark.parametrize(
    "form", [*map(ExchangeForm, get_args(ExchangeDtype)), ExchangeForm(top=8)], ids=str
)
def test_the_plan_knows_the_bytes(form: ExchangeForm) -> None:
    code = code_of(form)
    count = 1 << 16
    length = 4 * count if code is None else code.length(count) * code.dtype.itemsize
    assert length / (4 * count) == pytest.approx(form.share, rel=1e-3)


@pytest.mark.parametrize("count", [1, 8, 255, 256, 257, 700])
def test_the_largest_of_each_block_travel_and_the_others_wait(count: int) -> None:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(count))
    arrived, left = travelled(made(ExchangeForm(top=8)), numbers)
    assert torch.equal(arrived + left, numbers)
    for begin in range(0, count, TOP_BLOCK):
        block = numbers[begin : begin + TOP_BLOCK].abs()
        chosen = set(block.topk(min(8, len(block))).indices.tolist())
        assert set(arrived[begin : begin + TOP_BLOCK].nonzero().view(-1).tolist()) == chosen
    torch.testing.assert_close(arrived, numbers * (arrived != 0), rtol=2**-8, atol=0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_among_the_largest(wrong: float) -> None:
    numbers = torch.linspace(1, 2, 600)
    numbers[500] = wrong
    arrived, _ = travelled(made(ExchangeForm(top=1)), numbers)
    assert not math.isfinite(float(arrived[500]))
    assert bool(arrived[:512:256].isfinite().all())
