"""Sums of pieces, parameters that pieces share, and other sizes of micro-batches."""

from __future__ import annotations

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    SharedParameters,
    UpdateCosts,
)


def model(samples: int, fixed_s: float = 1.0) -> ModelCosts:
    pieces = tuple(
        Piece(
            forward_s=fixed_s + n * samples,
            backward_s=2 * n * samples,
            weight_s=n * samples,
            kept_bytes=10 * n * samples,
            peak_bytes=n * samples,
            parameter_bytes=100 * n,
            trained_bytes=100 * n,
        )
        for n in (1, 2, 3)
    )
    bounds = tuple(Boundary(name=f"b{n}", forward_bytes=samples, backward_bytes=0) for n in (1, 2))
    shared = (SharedParameters(num_bytes=7, pieces=(0, 2)),)
    return ModelCosts(samples=samples, pieces=pieces, boundaries=bounds, shared=shared)


def profile(*sizes: int, fixed_s: float = 1.0) -> Profile:
    key = ProfileKey(model="m", device="cpu", versions="1", precision="float32")
    by_samples = tuple(model(size, fixed_s) for size in sizes)
    return Profile(key=key, by_samples=by_samples, update=UpdateCosts())


def test_parts_are_the_sums_of_their_pieces() -> None:
    front, rear = model(2).parts([1])
    assert (front.forward_s, front.kept_bytes, front.peak_bytes) == (8, 60, 4)
    assert (rear.forward_s, rear.weight_s, rear.peak_bytes) == (7, 6, 6)


def test_each_part_that_shares_parameters_has_a_copy() -> None:
    parts = model(2).parts([0, 1])
    assert [part.parameter_bytes for part in parts] == [107, 200, 307]
    assert [part.trained_bytes for part in parts] == [107, 200, 307]
    assert model(2).part(0, 3).parameter_bytes == 607


@pytest.mark.parametrize("samples", [1, 4, 6, 8, 20])
def test_other_sizes_are_on_the_line(samples: int) -> None:
    assert profile(4, 8).at(samples) == model(samples)


def test_one_size_only_grows_with_the_samples() -> None:
    assert profile(4, fixed_s=0.0).at(6) == model(6, fixed_s=0.0)


def test_nothing_is_below_zero() -> None:
    high = profile(8, 16, fixed_s=-10.0).at(1)
    assert min(piece.forward_s for piece in high.pieces) == 0


@pytest.mark.parametrize(
    ("cut", "num_chunks", "numbers"),
    [
        (("b1", "b2"), 3, (0, 1)),
        (("b2",), 2, (1,)),
        (("b2.0.conv",), 2, (1,)),
        ((), 3, (0, 1)),
        ((), 1, ()),
        (("b1",), 1, ()),
    ],
    ids=["all", "one", "inside of the module that begins there", "a list", "whole", "not cut"],
)
def test_cuts_are_found_by_name(
    cut: tuple[str, ...], num_chunks: int, numbers: tuple[int, ...]
) -> None:
    assert profile(4).cut_numbers(cut, num_chunks) == numbers


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (("b3",), "--cut b3 is no place that was profiled; nearest: b"),
        ((), "3 pieces for 2 chunks, and no --cut says where they begin; give 1 name"),
    ],
)
def test_a_cut_that_the_profile_does_not_know_is_refused(cut: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        profile(4).cut_numbers(cut, 2)
