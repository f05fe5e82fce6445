"""Buckets of gradients: how long they are, and when in the last backward they are full."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.candidate import Candidate
from bundlerun.launcher.planning.model_costs import Boundary, ModelCosts, Piece, UpdateCosts
from bundlerun.launcher.planning.simulation.work import Bucket, work_of

KB = 1000
FIRST = 64 << 10
"""Bytes that go ahead, at most; they are widened to twice as many."""


def piece(*, trained: int, longest: int = 0, unused: int = 0) -> Piece:
    return Piece(
        forward_s=1, backward_s=2, weight_s=1, trained_bytes=trained, longest_bytes=longest,
        num_unused=unused,
    )  # fmt: skip


def buckets(pieces: Sequence[Piece], *, cuts: tuple[int, ...] = ()) -> list[tuple[Bucket, ...]]:
    """Of each stage, where a bucket has 1 MB."""
    bounds = [Boundary(name=str(i), forward_bytes=0, backward_bytes=0) for i in range(len(pieces))]
    costs = ModelCosts(samples=1, pieces=tuple(pieces), boundaries=tuple(bounds[1:]))
    plan = Candidate(
        shape=Shape((1,) * (len(cuts) + 1)), cuts=cuts, schedule="1f1b", sync="local-master",
        samples=1,
    )  # fmt: skip
    return [stage.buckets for stage in work_of(costs, UpdateCosts(), plan, 1000 * KB).stages]


def told(found: Sequence[Bucket]) -> list[tuple[int, float]]:
    return [(bucket.num_bytes, bucket.after) for bucket in found]


def test_a_parameter_is_in_one_bucket_however_long_it_is() -> None:
    long = [piece(trained=3000 * KB + 4, longest=3000 * KB)] * 2
    (found,) = buckets(long)
    # The short one of the last piece goes ahead; that of the first has a bucket of its own.
    assert told(found) == [(8, 0.5), (3000 * KB, 0.5), (3000 * KB, 1), (4, 1)]
    # Not known: they are taken to be short, and are cut as a bucket is full.
    (found,) = buckets([piece(trained=3000 * KB)])
    rest = 3000 * KB - FIRST
    assert told(found) == [(2 * FIRST, 1), (1000 * KB, 1), (1000 * KB, 1), (rest - 2000 * KB, 1)]


def test_what_does_not_fit_beside_a_long_parameter_leaves_before_it() -> None:
    (found,) = buckets([piece(trained=3000 * KB, longest=3000 * KB), piece(trained=500 * KB)])
    assert told(found) == [(2 * FIRST, 0.5), (500 * KB - FIRST, 0.5), (3000 * KB, 1)]


def test_all_wait_for_a_short_parameter_of_an_early_layer_where_there_is_no_other() -> None:
    long = piece(trained=2000 * KB, longest=2000 * KB)
    (found,) = buckets([piece(trained=2000 * KB + 4, longest=2000 * KB), long, long])
    assert told(found) == [(8, 1), *[(2000 * KB, 1)] * 3]
    (found,) = buckets([long, long])
    assert told(found) == [(2000 * KB, 0.5), (2000 * KB, 1)]


@pytest.mark.parametrize("number", range(3))
def test_a_parameter_without_a_gradient_holds_back_all_after_it(number: int) -> None:
    pieces = [piece(trained=1000 * KB + 4, longest=1000 * KB, unused=i == number) for i in range(3)]
    (found,) = buckets(pieces)
    assert sum(b.num_bytes for b in found) == 3 * (1000 * KB + 4) + 4
    at = {b.after for b in found if b.after < 1}
    # The last piece's gradients come first.
    assert at == {0: {1 / 3, 2 / 3}, 1: {1 / 3}, 2: set()}[number]


def test_a_stage_is_held_back_by_its_own_parameters_only() -> None:
    pieces = [piece(trained=2000 * KB, longest=1000 * KB, unused=i == 3) for i in range(4)]
    first, second = buckets(pieces, cuts=(1,))
    assert {b.after for b in first} == {0.5, 1}
    assert {b.after for b in second} == {1}
