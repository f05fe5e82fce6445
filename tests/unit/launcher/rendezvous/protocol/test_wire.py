"""Rounds go over a connection once; what is said arrives all the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings

from bundlerun.launcher.rendezvous.protocol.messages import (
    Go,
    Message,
    Propose,
    Report,
    Round,
    Seat,
    Status,
    encode,
)
from bundlerun.launcher.rendezvous.protocol.wire import Book, Wire
from tests.unit.launcher.rendezvous.protocol.test_messages import MESSAGES

SEATS = tuple(
    Seat(name=f"n{i}", incarnation=f"{i * 7919 % 10007:016x}", address=f"10.0.{i >> 8}.{i & 255}",
         num_workers=8)
    for i in range(500)
)  # fmt: skip
ROUND = Round(term=1, number=1, seats=SEATS, store_port=7)


def pair() -> tuple[Wire, Wire]:
    """The two ends of a connection between two processes."""
    return Wire(Book()), Wire(Book())


def passed(sender: Wire, receiver: Wire, message: Message) -> tuple[Message, int]:
    """What arrives, and the bytes that it took."""
    data = sender.encode(message)
    heard = [receiver.decode(line) for line in data.splitlines(keepends=True)]
    assert heard[:-1] == [None] * (len(heard) - 1)
    assert heard[-1] is not None
    return heard[-1], len(data)


def report_of(round_: Round) -> Report:
    return Report(
        serial=1, seat=SEATS[0], promised=1, last=round_, pending=None, grounds=(), at=round_.id,
        is_waiting=True, known=1,
    )  # fmt: skip


@settings(max_examples=20)
@given(MESSAGES, MESSAGES)
def test_what_is_sent_arrives_the_first_time_and_later(one: Message, other: Message) -> None:
    a, b = pair()
    for message in (one, other, one):
        assert passed(a, b, message)[0] == message
        assert passed(b, a, message)[0] == message


def test_a_round_takes_few_bytes_a_seat_and_then_none() -> None:
    a, b = pair()
    first, took = passed(a, b, Propose(round=ROUND, grounds=()))
    assert first == Propose(round=ROUND, grounds=())
    assert took < 30 * len(SEATS) < len(ROUND.text) / 3
    assert passed(a, b, Go(term=1, round=ROUND))[1] < 120
    # The other way, too: who was told of it need not tell it.
    heard, took = passed(b, a, report_of(first.round))  # type: ignore[union-attr]
    assert isinstance(heard, Report)
    assert heard.last == ROUND
    assert took < 500


@pytest.mark.parametrize(
    "seats",
    [
        SEATS[:100] + SEATS[101:],
        SEATS[1:],
        SEATS[:-1],
        (*SEATS[:7], *SEATS[8:], replace(SEATS[7], incarnation="new")),
        SEATS[::-1][:3] + SEATS[5:],
        (),
    ],
    ids=["one gone", "first gone", "last gone", "one anew at the end", "another order", "none"],
)  # fmt: skip
def test_the_next_round_is_told_by_what_it_has_of_the_last(seats: tuple[Seat, ...]) -> None:
    a, b = pair()
    passed(a, b, Go(term=1, round=ROUND))
    later = replace(ROUND, number=2, seats=seats, store_port=9, is_fenced=True)
    heard, took = passed(a, b, Propose(round=later, grounds=(ROUND,)))
    assert heard == Propose(round=later, grounds=(ROUND,))
    assert took < 600


def test_a_round_of_other_nodes_is_told_in_full() -> None:
    a, b = pair()
    passed(a, b, Go(term=1, round=ROUND))
    others = tuple(replace(seat, name=f"m{seat.name}") for seat in SEATS)
    later = replace(ROUND, number=2, seats=others)
    heard, took = passed(a, b, Go(term=1, round=later))
    assert heard == Go(term=1, round=later)
    assert took < 30 * len(SEATS)


def test_who_says_what_it_knows_is_not_told_that() -> None:
    """A node that comes to the next coordinator, which was in the same round."""
    candidate, node = Book(), Book()
    candidate.add(ROUND)
    wire = Wire(node)
    wire.expect(candidate.keys)
    heard, took = passed(wire, Wire(candidate), report_of(ROUND))
    assert heard == report_of(ROUND)
    assert took < 500


def test_equal_rounds_of_many_connections_are_one_here() -> None:
    """A coordinator with thousands of nodes keeps each round once."""
    here = Book()
    heard = [passed(Wire(Book()), Wire(here), report_of(replace(ROUND)))[0] for _ in range(2)]
    lasts = [message.last for message in heard if isinstance(message, Report)]
    assert lasts[0] is lasts[1]


def test_after_many_rounds_each_still_arrives() -> None:
    a, b = pair()
    for number in range(1, 40):
        round_ = replace(ROUND, number=number, seats=SEATS[number:90])
        assert passed(a, b, Go(term=1, round=round_))[0] == Go(term=1, round=round_)
    # Long forgotten: in full again.
    assert passed(a, b, Go(term=1, round=ROUND))[0] == Go(term=1, round=ROUND)
    assert len(b._book._rounds) <= 16


def test_what_is_named_and_unknown_is_refused() -> None:
    a, b = pair()
    (_, name) = a.encode(Go(term=1, round=ROUND)).splitlines()
    with pytest.raises(ValueError, match="nobody has told"):
        b.decode(name)


def lines_of(round_: Round, base: Round | None) -> dict[str, object]:
    book = Book()
    key = book.add(base) if base else ""
    document: dict[str, object] = json.loads(book.line(round_, key))
    return document


LATER = replace(ROUND, number=2, seats=SEATS[1:])


@pytest.mark.parametrize(
    ("wrong", "base"),
    [
        ({"key": 3}, None),
        ({"key": "0" * 32}, None),
        ({"packed": "!"}, None),
        ({"packed": "eJw="}, None),
        ({"key": "0" * 32}, ROUND),
        ({"base": "no such"}, ROUND),
        ({"seats": None}, ROUND),
        ({"seats": [[0, 501]]}, ROUND),
        ({"seats": [["0", "2"]]}, ROUND),
        ({"seats": [3]}, ROUND),
        ({"seats": [{"name": "x"}]}, ROUND),
        ({"number": "2"}, ROUND),
    ],
)
def test_a_round_that_is_damaged_is_refused(wrong: dict[str, object], base: Round | None) -> None:
    book = Book()
    if base:
        book.add(base)
    document = {**lines_of(LATER if base else ROUND, base), **wrong}
    with pytest.raises(ValueError, match=r"round|Seat|no int|digest"):
        Wire(book).decode(json.dumps(document).encode())


def test_messages_without_rounds_are_lines_as_ever() -> None:
    status = Status(is_active=True, term=1, number=2, last_term=1, knows=("a",))
    assert Wire(Book()).encode(status) == encode(status)


def test_a_round_says_which_one_its_workers_come_from_also_as_what_it_has_of_that() -> None:
    sender, receiver = pair()
    passed(sender, receiver, Go(term=1, round=ROUND))
    joined = Seat(name="new", incarnation="f", address="10.1.0.0", num_workers=8)
    later = replace(ROUND, number=2, seats=(*SEATS, joined), before=ROUND.id)
    heard, num_bytes = passed(sender, receiver, Go(term=1, round=later))
    assert heard == Go(term=1, round=later)
    assert num_bytes < 1000
