"""Narrow matrices in place of wide ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.short.low_rank import (
    FirstHalf,
    LowRank,
    SecondHalf,
    has_matrices,
    orthogonal,
    product,
)
from bundlerun.workers.sync.target import WholeWire
from tests.unit.workers.sync.short.alone import alone

CPU = torch.device("cpu")


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_a_basis_is_orthonormal_and_spans_the_rows(size: int) -> None:
    given = rows(min(4, size), size)
    found = orthogonal(given)
    torch.testing.assert_close(found @ found.T, torch.eye(len(given)), rtol=0, atol=1e-5)
    torch.testing.assert_close((given @ found.T) @ found, given, rtol=1e-4, atol=1e-4)


def test_what_says_nothing_new_becomes_zeros() -> None:
    one, two = rows(2, 50)
    found = orthogonal(torch.stack([one, 2 * one, torch.zeros(50), two, one + two]))
    assert [bool(row.any()) for row in found] == [True, False, False, True, False]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(wrong: float) -> None:
    given = rows(2, 9)
    given[1, 3] = wrong
    assert not bool(orthogonal(given)[1].isfinite().any())


def test_the_same_bits_whatever_adds_up() -> None:
    """A sum in another order, or in one with more threads, would have others."""
    given = rows(4, 4097)
    wanted, threads = orthogonal(given), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(orthogonal(given), wanted)
    finally:
        torch.set_num_threads(threads)
    p, q = rows(3, 40, seed=1), rows(3, 30, seed=2)
    out = torch.empty(40, 30)
    product(p, q, out)
    assert torch.equal(out, (p[0, :, None] * q[0] + p[1, :, None] * q[1]) + p[2, :, None] * q[2])


def bucket() -> Bucket:
    shapes = [(7,), (30, 20), (2, 2), (8, 5, 3, 3), (4,)]
    return Bucket([Parameter(torch.zeros(shape)) for shape in shapes], 0, CPU, None)


def test_only_matrices_that_get_shorter_travel_as_two() -> None:
    within = bucket()
    assert has_matrices(within, 1)
    assert has_matrices(within, 6)
    assert not has_matrices(within, 12)
    assert not has_matrices(Bucket([Parameter(torch.zeros(900))], 0, CPU, None), 1)


@pytest.mark.parametrize("rank", [1, 3])
def test_what_is_sent_and_what_is_kept_are_the_numbers(rank: int) -> None:
    within, shared = bucket(), LowRank(rank)
    group = alone()
    first, second = FirstHalf(WholeWire(), group, shared), SecondHalf(WholeWire(), group, shared)
    total, exact = torch.zeros_like(within.wire), torch.zeros_like(within.wire)
    for step in range(5):
        given = rows(within.wire.numel(), seed=step)
        within.wire.copy_(given)
        first.begin(within)()
        second.begin(within)()
        total += within.wire
        exact += given
    lost = [part.parameter for part in shared.kept(within)]
    assert [any(p is each for each in lost) for p in within.parameters] == [
        False, True, False, True, False,
    ], "vectors, and what is small, travel whole"  # fmt: skip
    for part in shared.kept(within):
        begin, end = within.places[part.parameter]
        total[begin:end] += part.numbers
    torch.testing.assert_close(total, exact, rtol=1e-4, atol=1e-4)
    # What is of that rank arrives, once the narrow ones have turned to it.
    shared.drop()
    matrix = rows(30, rank, seed=8) @ rows(rank, 20, seed=9)
    for _ in range(2):
        within.wire.zero_()
        within.views[1].copy_(matrix)
        shared.of(within).left.zero_()
        first.begin(within)()
        second.begin(within)()
    torch.testing.assert_close(within.views[1], matrix, rtol=1e-3, atol=1e-3)


def test_what_is_not_finite_is_gone_after_it_is_dropped() -> None:
    within, shared = bucket(), LowRank(2)
    group = alone()
    first, second = FirstHalf(WholeWire(), group, shared), SecondHalf(WholeWire(), group, shared)
    for number, is_finite in ((math.nan, False), (1.0, True)):
        within.wire.fill_(number)
        first.begin(within)()
        second.begin(within)()
        assert bool(within.wire.isfinite().all()) == is_finite
        shared.drop()
