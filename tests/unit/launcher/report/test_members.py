from __future__ import annotations

from typing import Any

from bundlerun.launcher.report.members import member_lines, members_of, topology_of


def event(node: str, name: str, **details: Any) -> dict[str, Any]:
    return {"node": node, "event": name, **details}


def ranks(node: str, count: int, *names: str) -> list[dict[str, Any]]:
    return [event(node, name, local_rank=rank) for name in names for rank in range(count)]


TRAINS = ("starts", "met", "restored", "first step")
EVENTS = [
    event("a", "coordinator: round", round=1, nodes=["b", "a", "c"]),
    event("a", "in a round", round=1),
    *ranks("a", 4, *TRAINS),
    event("b", "in a round", round=1),
    *ranks("b", 2, *TRAINS),
    event("a", "coordinator: round", round=2, nodes=["b", "a"]),
    event("b", "in a round", round=2),
    *ranks("b", 2, "starts"),
    event("a", "in a round", round=2),
    *ranks("a", 5, "starts", "met"),
    event("a", "spare", local_rank=4),
    event("a", "first step", local_rank=0),
    event("a", "rank gone", local_rank=3, why="it was killed"),
]


def test_a_picture_shows_each_rank_of_the_last_round_and_what_it_does() -> None:
    members = members_of(EVENTS)
    assert [(node.name, node.is_in) for node in members] == [("b", True), ("a", True), ("c", False)]
    assert list(member_lines(members, topology_of(members, "1,1"))) == [
        "b  bundle 0   r0! s0   r1! s1   r0, r1: starts",
        "a  bundle 1   r2* s0   r3! s1   r3: makes its stage",
        "   bundle 2   r4! s0   r5! s1   r4: makes its stage; r5: died",
        "   spare      r6",
        "c  is no member any more",
    ]


def test_a_round_before_its_ranks_is_told_without_bundles() -> None:
    members = members_of([EVENTS[0], event("b", "in a round"), *ranks("b", 1, "starts")])
    assert topology_of(members, "1,1") is None
    assert topology_of(members, "nonsense") is None
    assert next(member_lines(members, None)) == "b  1 rank  local rank 0: starts"


def test_many_nodes_are_cut_short_and_nobody_is_a_picture_too() -> None:
    nodes = [f"n{number:02}" for number in range(40)]
    events = [event("n00", "coordinator: round", round=1, nodes=nodes)]
    events += [row for node in nodes for row in ranks(node, 1, *TRAINS)]
    lines = list(member_lines(members_of(events), None))
    assert len(lines) == 17
    assert lines[-1] == "... 24 more"
    assert list(member_lines([], None)) == []
