"""How two ways that were measured in turn are compared."""

from __future__ import annotations

import pytest

from benchmarks.network.cuts import ratio


def test_a_machine_that_gets_slower_makes_no_difference_between_equal_things() -> None:
    # In turn: own, other | other, own | own, other; each takes a tenth of a second longer.
    own, others = [1.0, 1.3, 1.4, 1.7], [1.1, 1.2, 1.5, 1.6]
    assert ratio(others, own) == pytest.approx(1)
    assert ratio([2 * s for s in others], own) == pytest.approx(2)


def test_a_moment_in_which_the_machine_does_something_else_is_left_out() -> None:
    assert ratio([3.0] * 4 + [9.0] + [3.0] * 4, [2.0] * 9) == pytest.approx(1.5)


def test_one_round_is_compared_as_it_is() -> None:
    assert ratio([3.0], [2.0]) == 1.5
