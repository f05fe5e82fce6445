"""What a node's console is told of the rendezvous."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.rendezvous.protocol.messages import Pulse, Round, Seat
from bundlerun.launcher.rendezvous.protocol.standing import Member, Waiting
from bundlerun.launcher.rendezvous.protocol.wishes import Note
from bundlerun.launcher.rendezvous.told import (
    Obstacle,
    WaitLines,
    event_line,
    joined_line,
    obstacle_of,
)


def seat(name: str, num_workers: int = 2) -> Seat:
    return Seat(name=name, incarnation=name, address="10.0.0.1", num_workers=num_workers)


def pulse(number: int = 0, waits_for: str = "") -> Pulse:
    return Pulse(term=1, is_active=True, number=number, num_nodes=1, waits_for=waits_for)


MEMBER = Member(seat=seat("b"), num_candidates=1, lease_s=1.5, guided_at=0.0, stand=Waiting())
REFUSED = "10.0.0.1:29400 refuses connections"


def test_an_endpoint_that_does_not_answer_is_named_with_what_is_wrong() -> None:
    found = obstacle_of(MEMBER, [REFUSED], is_in_touch=False)
    assert found.is_unreached
    assert "no endpoint of the rendezvous answers: 10.0.0.1:29400 refuses" in found.what


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (MEMBER, Obstacle(what="no coordinator is active yet")),
        (replace(MEMBER, pulse=pulse(waits_for="1 of 2 here")), Obstacle(what="1 of 2 here")),
        (
            replace(MEMBER, pulse=pulse(number=3)),
            Obstacle(what="round 3 has begun without it, and it is spare", is_endless=True),
        ),
    ],
)
def test_a_node_in_touch_says_what_the_coordinator_waits_for(
    member: Member, expected: Obstacle
) -> None:
    assert obstacle_of(member, [REFUSED], is_in_touch=True) == expected


def told(obstacles: dict[float, Obstacle], *, until: float = 100.0) -> dict[float, str]:
    """The lines of a wait from 0 s on, looked at every half second; obstacles by their begin."""
    waiting, current, lines = WaitLines("b", 0.0), Obstacle(what=""), {}
    for half_seconds in range(round(2 * until)):
        now = half_seconds / 2
        current = obstacles.get(now, current)
        line = waiting.line(current, now, 600.0)
        if line:
            lines[now] = line
    return lines


def test_a_wait_is_told_after_5_s_and_then_every_30() -> None:
    lines = told({0.0: Obstacle(what="1 of 2 nodes are here")})
    assert list(lines) == [5.0, 35.0, 65.0, 95.0]
    assert lines[35.0] == "node b waits: 1 of 2 nodes are here; it gives up in 565 s"


def test_a_wrong_endpoint_is_told_within_seconds() -> None:
    lines = told({0.0: Obstacle(what="nobody answers", is_unreached=True)})
    assert list(lines)[:2] == [2.0, 32.0]


def test_what_has_changed_is_told_sooner_and_not_in_a_flood() -> None:
    lines = told({0.0: Obstacle(what="x"), 7.0: Obstacle(what="y"), 11.0: Obstacle(what="z")})
    assert list(lines)[:4] == [5.0, 10.0, 15.0, 45.0]


def test_a_spare_node_says_so_once_and_without_a_limit() -> None:
    lines = told({0.0: Obstacle(what="it is spare", is_endless=True)})
    assert lines == {5.0: "node b waits: it is spare"}


def test_a_node_says_with_whom_it_is_and_which_ranks_it_has() -> None:
    round_ = Round(term=1, number=4, seats=(seat("a", 3), seat("b"), seat("c", 1)))
    assert joined_line(round_, "b") == (
        "node b is in round 4 with nodes a, c: ranks 3 to 4 of 6 are here"
    )
    assert joined_line(replace(round_, seats=round_.seats[2:]), "c") == (
        "node c is in round 4 alone: rank 0 of 1 is here"
    )
    unknown = replace(round_, seats=(seat("a", 0), seat("b", 0)))
    assert joined_line(unknown, "a") == "node a is in round 4 with node b"


def test_the_end_of_a_round_is_told_and_its_inner_turns_are_not() -> None:
    over = Note(event="over", details={"round": 4, "why": "node c is lost, it is silent"})
    assert event_line(over, "b") == (
        "node b: round 4 is over: node c is lost, it is silent; its ranks start again"
    )
    assert event_line(Note(event="round", details={"round": 4, "why": ""}), "b") == ""
