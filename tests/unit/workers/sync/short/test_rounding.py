"""What is rounded on its way to another node, and made up for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.short.rounding import Rounding

CPU = torch.device("cpu")
BFLOAT16 = ExchangeForm("bfloat16")
FORMS = [BFLOAT16, ExchangeForm("int8"), ExchangeForm("int4"), ExchangeForm(top=16)]
ONE = Bucket([Parameter(torch.zeros(40)), Parameter(torch.zeros(2, 130))], 0, CPU, None)
"""A bucket is only what remainders are kept by, and where which parameter is in it."""


def rounding(form: ExchangeForm = BFLOAT16) -> Any:
    return Rounding(form)


def arrived(tested: Any, numbers: torch.Tensor) -> torch.Tensor:
    """What the others read of it."""
    (wire,) = tested.sent(ONE, [numbers], 0)
    out = torch.empty_like(numbers)
    tested.code.read(wire, out)
    return out


def remainder(tested: Any) -> torch.Tensor:
    """All that is kept back, flat."""
    return torch.cat([part.numbers for part in tested.kept(ONE)])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_one_step_loses_the_next_ones_send(form: ExchangeForm) -> None:
    numbers, total = torch.linspace(0.001, 1.003, 50), torch.zeros(50)
    tested = rounding(form)
    for _ in range(64):
        total += arrived(tested, numbers)
    left = remainder(tested)
    torch.testing.assert_close(total + left, 64 * numbers, rtol=1e-5, atol=1e-5)
    assert float((numbers.bfloat16().float() * 64 - 64 * numbers).abs().max()) > 0.05


def test_a_remainder_is_taken_up_or_dropped() -> None:
    numbers = torch.full((3,), 1.001)
    first, second = rounding(), rounding()
    arrived(first, numbers)
    for part in first.kept(ONE):
        second.take_up(ONE, part)
    assert torch.equal(arrived(first, numbers), arrived(second, numbers))
    assert torch.equal(remainder(first), remainder(second))
    assert remainder(second).any()
    second.drop()
    assert not remainder(second).any()
    third = rounding()
    third.take_up(ONE, part)
    third.drop()
    assert torch.equal(arrived(third, numbers), arrived(rounding(), numbers))


def test_what_is_kept_of_a_part_of_a_bucket_is_told_by_parameter() -> None:
    tested = rounding()
    numbers = torch.full((100,), 1.001)
    tested.sent(ONE, numbers.tensor_split(3), 30)  # a shard: from the 30th number on
    small = ONE.parameters[0]
    parts = tested.kept(ONE)
    assert [(p.parameter is small, p.begin, p.numbers.numel()) for p in parts] == [
        (True, 30, 10), (False, 0, 90),
    ]  # fmt: skip
    again = rounding()
    for part in parts:
        again.take_up(ONE, part)
    sent = [torch.cat([*each.sent(ONE, numbers.tensor_split(3), 30)]) for each in (tested, again)]
    assert torch.equal(*sent)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_pieces_have_one_remainder(form: ExchangeForm) -> None:
    numbers = torch.linspace(-1, 1.003, 300)
    tested = rounding(form)
    pieces = numbers.tensor_split(4)
    out = [torch.empty_like(piece) for piece in pieces]
    for wire, piece in zip(tested.sent(ONE, pieces, 0), out, strict=True):
        tested.code.read(wire, piece)
    torch.testing.assert_close(torch.cat(out) + remainder(tested), numbers)


def test_only_float32_is_rounded_and_only_where_asked() -> None:
    for tested, numbers in (
        (rounding(), torch.ones(3, dtype=torch.float64)),
        (rounding(EXACT), torch.ones(3)),
    ):
        (sent,) = tested.sent(ONE, [numbers], 0)
        assert sent is numbers
        assert tested.kept(ONE) == []
    assert rounding().rounds
    assert not rounding(EXACT).rounds
