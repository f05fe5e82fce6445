"""What is rounded on its way to another node, and made up for."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from bundlerun.launcher.choices import ExchangeDtype
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.short.rounding import Rounding

ONE = cast(Bucket, object())
"""A bucket is only what remainders are kept by."""


def rounding(form: ExchangeDtype = "bfloat16") -> Any:
    return Rounding(form)


def arrived(tested: Any, numbers: torch.Tensor) -> torch.Tensor:
    """What the others read of it."""
    (wire,) = tested.sent(ONE, [numbers])
    out = torch.empty_like(numbers)
    tested.code.read(wire, out)
    return out


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
def test_what_one_step_loses_the_next_ones_send(form: ExchangeDtype) -> None:
    numbers, total = torch.linspace(0.001, 1.003, 50), torch.zeros(50)
    tested = rounding(form)
    for _ in range(64):
        total += arrived(tested, numbers)
    left = tested.remainder(ONE)
    torch.testing.assert_close(total + left, 64 * numbers, rtol=1e-5, atol=1e-5)
    assert float((numbers.bfloat16().float() * 64 - 64 * numbers).abs().max()) > 0.05


def test_a_remainder_is_taken_up_or_dropped() -> None:
    numbers = torch.full((3,), 1.001)
    first, second = rounding(), rounding()
    arrived(first, numbers)
    second.take_up(ONE, first.remainder(ONE))
    assert torch.equal(arrived(first, numbers), arrived(second, numbers))
    assert torch.equal(first.remainder(ONE), second.remainder(ONE))
    assert second.remainder(ONE).any()
    second.drop()
    assert not second.remainder(ONE).any()


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
def test_pieces_have_one_remainder(form: ExchangeDtype) -> None:
    numbers = torch.linspace(-1, 1.003, 300)
    tested = rounding(form)
    pieces = numbers.tensor_split(4)
    out = [torch.empty_like(piece) for piece in pieces]
    for wire, piece in zip(tested.sent(ONE, pieces), out, strict=True):
        tested.code.read(wire, piece)
    torch.testing.assert_close(torch.cat(out) + tested.remainder(ONE), numbers)


def test_only_float32_is_rounded_and_only_where_asked() -> None:
    for tested, numbers in (
        (rounding(), torch.ones(3, dtype=torch.float64)),
        (rounding("float32"), torch.ones(3)),
    ):
        (sent,) = tested.sent(ONE, [numbers])
        assert sent is numbers
        assert tested.remainder(ONE) is None
    assert rounding().rounds
    assert not rounding("float32").rounds
