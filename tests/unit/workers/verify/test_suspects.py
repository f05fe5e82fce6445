from __future__ import annotations

import pytest

from bundlerun.workers.verify.suspects import Difference, first_difference, judged


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ([[1, 2], [1, 2], [1, 2]], None),
        ([[1, 2], [1, 3], [1, 2]], Difference(1, (1,))),
        ([[1, 2], [1, 3]], Difference(1, ())),
        ([[1], [1], [2], [3], [1]], Difference(0, (2, 3))),
        ([[1], [1], [2], [2]], Difference(0, ())),  # no majority
        ([[1], [2], [3]], Difference(0, ())),
        ([[1, 7], [2, 7], [3, 8]], Difference(1, (2,))),  # the one that has a culprit
        ([[], []], None),
    ],
)
def test_who_is_wrong(table: list[list[int]], wanted: Difference | None) -> None:
    assert first_difference(table) == wanted


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([[1, 2], [1, 2], [1, 3]], [[1, 2], [1, 2], [1, 3]], Difference(1, (2,))),
        ([[1, 2], [1, 3]], [[1, 2], [1, 3]], Difference(1, ())),
        # One that is wrong each time otherwise, beside two that repeat themselves.
        ([[1, 2], [1, 7], [1, 2]], [[1, 2], [1, 8], [1, 2]], Difference(1, (1,))),
        # It was wrong once; or one of two is not steady, and nobody can say which of them is wrong.
        ([[1, 2], [4, 2], [1, 2]], [[1, 2], [1, 2], [1, 2]], Difference(0, (1,))),
        ([[1], [2]], [[1], [1]], None),
        # A kernel that does not repeat itself is no fault.
        ([[1], [2], [3]], [[4], [5], [6]], None),
        ([[1], [2], [3]], [[1], [5], [6]], None),
        ([[1], [1], [2]], [[1], [3], [2]], None),
    ],
)
def test_who_is_wrong_of_those_that_have_done_it_twice(
    first: list[list[int]], second: list[list[int]], wanted: Difference | None
) -> None:
    assert judged(first, second) == wanted
