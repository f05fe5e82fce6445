from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.rendezvous.protocol.messages import Report, Round, Seat, Status
from bundlerun.launcher.rendezvous.protocol.votes import (
    best_candidate,
    choose_seats,
    grounds_of,
    has_quorum,
    last_round,
    next_term,
    search_order,
)


def seat(name: str, num_workers: int = 1, incarnation: str = "1") -> Seat:
    return Seat(name=name, incarnation=incarnation, address="", num_workers=num_workers)


def round_of(names: str, term: int = 0, number: int = 1) -> Round:
    return Round(term=term, number=number, seats=tuple(map(seat, names)))


def report(name: str, *, promised: int, last: Round | None, pending: Round | None = None) -> Report:
    return Report(
        serial=1,
        seat=seat(name),
        promised=promised,
        last=last,
        pending=pending,
        grounds=(last,) if pending and last else (),
        at=(-1, 0),
        is_waiting=True,
        known=0,
    )


@pytest.mark.parametrize(
    ("base", "here", "may"),
    [
        ("abcde", "abc", True),
        ("abcde", "ab", False),
        ("abcd", "ab", True),
        ("abcd", "cd", False),
        ("ab", "a", True),
        ("ab", "b", False),
        ("a", "", False),
        ("abc", "axyz", False),
    ],
)
def test_more_than_half_or_half_with_the_first(base: str, here: str, may: bool) -> None:
    assert has_quorum(round_of(base), map(seat, here)) is may


@given(st.integers(1, 9), st.sets(st.integers(0, 8)))
def test_never_both_halves(size: int, one: set[int]) -> None:
    base = round_of("abcdefghi"[:size])
    halves = [[s for i, s in enumerate(base.seats) if (i in one) is side] for side in (True, False)]
    assert sum(has_quorum(base, half) for half in halves) <= 1


def test_a_node_that_was_started_again_has_no_vote() -> None:
    assert not has_quorum(round_of("ab"), [seat("a", incarnation="2")])


def test_a_round_that_one_of_its_seats_never_accepted_is_not_the_last() -> None:
    before, after = round_of("abc"), round_of("ab", term=1, number=2)
    a = report("a", promised=2, last=before, pending=after)
    b = report("b", promised=2, last=before)
    c = report("c", promised=2, last=before)
    assert last_round([a, c]) == after
    assert last_round([a, b, c]) == before
    assert last_round([]) is None


def test_a_round_that_was_only_accepted_needs_a_quorum_of_what_it_was_built_on_too() -> None:
    before, after = round_of("adc", number=7), round_of("adb", number=8)
    a = report("a", promised=2, last=before, pending=after)
    b = report("b", promised=2, last=round_of("adb", number=6), pending=after)
    b = replace(b, grounds=(before,))
    base = last_round([a, b])
    assert base == after
    assert grounds_of(base, [a, b]) == (before, after)
    assert not has_quorum(before, [seat("b")])  # c and d may have gone on after 7

    gone_to = replace(a, last=after, pending=None)
    assert grounds_of(after, [gone_to, b]) == (after,)
    assert grounds_of(None, []) == ()


@given(st.integers(-1, 99), st.integers(1, 5), st.data())
def test_terms_grow_and_belong_to_one_candidate(
    highest: int, count: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, count - 1))
    salt = data.draw(st.integers(0, 9))
    term = next_term(highest, index, count, salt)
    assert term > highest
    assert term % count == index


def test_the_search_begins_behind_the_last_coordinator() -> None:
    assert search_order(-1, 3) == [0, 1, 2]
    assert search_order(4, 3) == [2, 0, 1]  # term 4 was candidate 1's


def test_an_active_candidate_with_the_latest_round_is_best() -> None:
    def status(is_active: bool, term: int, number: int, last_term: int = -1) -> Status:
        return Status(is_active=is_active, term=term, number=number, last_term=last_term)

    idle = status(False, 9, 0)
    assert best_candidate({}, -1, 3) is None
    assert best_candidate({1: idle, 2: idle}, -1, 3) == 1
    assert best_candidate({0: idle, 2: status(True, 2, 5)}, -1, 3) == 2
    assert best_candidate({0: status(True, 3, 4), 2: status(True, 2, 5)}, -1, 3) == 2
    assert best_candidate({0: idle, 1: idle, 2: status(False, 9, 0, last_term=4)}, -1, 3) == 2


@pytest.mark.parametrize(
    ("counts", "bundle_sizes", "chosen"),
    [
        ([1, 1, 1, 1], (1,), "abc"),
        ([2, 2, 1], (2,), "ab"),
        ([1, 1, 1], (2,), "ab"),
        ([3, 1, 1], (4,), "ab"),
        ([1], (2,), ""),
        ([0, 0], (4,), "ab"),
        ([1, 1, 1], (4, 3), "abc"),
        ([1, 1, 1], (4, 2), "ab"),
        ([1, 1], (4, 3), ""),
    ],
)
def test_who_makes_no_bundle_more_is_spare(
    counts: list[int], bundle_sizes: tuple[int, ...], chosen: str
) -> None:
    order = [seat(name, count) for name, count in zip("abcd", counts, strict=False)]
    seats = choose_seats(order, min_nodes=1, max_nodes=3, bundle_sizes=bundle_sizes)
    assert "".join(s.name for s in seats) == chosen
