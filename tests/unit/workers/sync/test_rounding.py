"""What is rounded on its way to another node, and made up for."""

from __future__ import annotations

from typing import Any, cast

import torch

from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.rounding import Rounding

ONE = cast(Bucket, object())
"""A bucket is only what remainders are kept by."""


def rounding(dtype: torch.dtype | None = torch.bfloat16) -> Any:
    return Rounding(dtype)


def test_what_one_step_loses_the_next_ones_send() -> None:
    numbers, total = torch.linspace(0.001, 1.003, 50), torch.zeros(50)
    tested = rounding()
    for _ in range(64):
        total += tested.sent(ONE, numbers).float()
    left = tested.remainder(ONE)
    torch.testing.assert_close(total + left, 64 * numbers, rtol=1e-5, atol=1e-5)
    assert float((numbers.bfloat16().float() * 64 - 64 * numbers).abs().max()) > 0.05


def test_a_remainder_is_taken_up_or_dropped() -> None:
    numbers = torch.full((3,), 1.001)
    first, second = rounding(), rounding()
    first.sent(ONE, numbers)
    second.take_up(ONE, first.remainder(ONE))
    assert torch.equal(first.sent(ONE, numbers), second.sent(ONE, numbers))
    assert torch.equal(first.remainder(ONE), second.remainder(ONE))
    assert second.remainder(ONE).any()
    second.drop()
    assert not second.remainder(ONE).any()


def test_only_float32_is_rounded_and_only_where_asked() -> None:
    for tested, numbers in (
        (rounding(), torch.ones(3, dtype=torch.float64)),
        (rounding(None), torch.ones(3)),
    ):
        assert tested.sent(ONE, numbers) is numbers
        assert tested.remainder(ONE) is None
    assert rounding().rounds
    assert not rounding(None).rounds
