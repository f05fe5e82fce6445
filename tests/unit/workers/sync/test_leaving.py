"""The order of buckets: the wire never waits, and what the next forward needs first comes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bundlerun.workers.sync.leaving import leaving


def test_a_wire_that_keeps_up_takes_buckets_as_they_are_final() -> None:
    assert leaving(8, 5) == (list(range(8)), 8)
    assert leaving(8, 8) == (list(range(8)), 8)


def test_what_would_stand_in_a_queue_leaves_from_the_front_of_the_model_on() -> None:
    assert leaving(10, 2.0) == ([0, 1, 3, 4, 9, 8, 7, 6, 5, 2], 4)


def test_the_first_two_are_never_kept_back() -> None:
    assert leaving(8, 0.0) == ([0, 1, 2, 7, 6, 5, 4, 3], 3)


@given(st.integers(1, 40), st.floats(0, 50))
def test_each_leaves_once_and_the_small_sums_first(num_buckets: int, headway: float) -> None:
    order, num_early = leaving(num_buckets, headway)
    assert sorted(order) == list(range(num_buckets))
    assert order[0] == 0
    assert order[:num_early] == sorted(order[:num_early])


@given(st.integers(8, 40))
def test_a_wire_that_gets_faster_is_noticed_step_by_step(num_buckets: int) -> None:
    num_early = 0
    for _ in range(num_buckets):
        # All that left early has come.
        order, num_early = leaving(num_buckets, num_early)
    assert order == list(range(num_buckets))
    assert num_early == num_buckets
