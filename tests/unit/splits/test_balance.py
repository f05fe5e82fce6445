from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.balance import SLACK, balanced_cuts, cheap_cuts, part_costs

COSTS = st.lists(st.integers(0, 9), min_size=1, max_size=9)


def smallest_largest_part(costs: list[int], num_parts: int) -> float:
    return min(
        max(part_costs(costs, cuts)) for cuts in combinations(range(1, len(costs)), num_parts - 1)
    )


@given(COSTS, st.data())
def test_the_largest_part_is_as_small_as_trying_all_cuts_finds(
    costs: list[int], data: st.DataObject
) -> None:
    num_parts = data.draw(st.integers(1, len(costs)))
    cuts = balanced_cuts(costs, num_parts)
    assert max(part_costs(costs, cuts)) == smallest_largest_part(costs, num_parts)


@given(COSTS, st.data())
def test_cuts_are_increasing_and_leave_no_part_empty(costs: list[int], data: st.DataObject) -> None:
    num_parts = data.draw(st.integers(1, len(costs)))
    cuts = balanced_cuts(costs, num_parts)
    assert len(cuts) == num_parts - 1
    assert list(cuts) == sorted(set(cuts))
    assert all(0 < cut < len(costs) for cut in cuts)


SHARES = st.lists(st.sampled_from([1.0, 2.0, 3.5]), min_size=1, max_size=4)


def load(costs: list[int], cuts: tuple[int, ...], shares: list[float]) -> float:
    """Of the most loaded part, relative to its share."""
    return max(c / s for c, s in zip(part_costs(costs, cuts), shares, strict=True))


@given(COSTS, SHARES)
def test_parts_are_as_large_as_their_share_of_the_devices(
    costs: list[int], shares: list[float]
) -> None:
    shares = shares[: len(costs)]
    every = list(combinations(range(1, len(costs)), len(shares) - 1))
    cuts = balanced_cuts(costs, len(shares), shares)
    assert load(costs, cuts, shares) == min(load(costs, c, shares) for c in every)


@given(COSTS, SHARES, st.data())
def test_the_cheapest_of_the_cuts_that_are_about_as_balanced_as_can_be(
    costs: list[int], shares: list[float], data: st.DataObject
) -> None:
    shares = shares[: len(costs)]
    count = st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs))
    prices = data.draw(count)
    every = list(combinations(range(1, len(costs)), len(shares) - 1))
    best = min(load(costs, cuts, shares) for cuts in every)
    close = [cuts for cuts in every if load(costs, cuts, shares) <= (1 + SLACK) * best - 1e-9]
    cuts = cheap_cuts(costs, prices, shares)
    assert load(costs, cuts, shares) <= (1 + SLACK) * best + 1e-9
    paid = sum(prices[i] for i in cuts)
    assert all(paid <= sum(prices[i] for i in other) for other in close)


def test_balance_comes_before_the_price() -> None:
    assert cheap_cuts([5, 1, 4, 2], [0, 1, 9, 0], [1, 1]) == (2,)
    assert cheap_cuts([500, 1, 499], [0, 9, 1], [1, 1]) == (2,)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8))
def test_costs_may_be_fractions(costs: list[float]) -> None:
    (cut,) = balanced_cuts(costs, 2)
    best = min(max(part_costs(costs, [c])) for c in range(1, len(costs)))
    assert max(part_costs(costs, [cut])) == pytest.approx(best, rel=1e-9)


def test_pieces_without_cost_go_to_the_part_before_them() -> None:
    assert balanced_cuts([4, 0, 0, 4], 2) == (3,)


def test_the_picture_of_the_module_is_what_it_gives() -> None:
    assert balanced_cuts([3, 1, 1, 4, 2, 2], 3) == (3, 4)


@pytest.mark.parametrize("num_parts", [0, 3])
def test_more_parts_than_pieces_are_refused_with_both_numbers(num_parts: int) -> None:
    with pytest.raises(ConfigError, match=f"2 pieces do not make {num_parts} parts"):
        balanced_cuts([1, 2], num_parts)
