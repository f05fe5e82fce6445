from __future__ import annotations

from typing import Any

from bundlerun.launcher.report.story import story_of

BEGIN_S = 1767225600.0


def event(second: float, node: str, name: str, **details: Any) -> dict[str, Any]:
    wall = f"2026-01-01T00:00:{second:06.3f}+00:00"
    return {"wall": wall, "node": node, "event": name, **details}


EVENTS = [
    event(0, "a", "asks for a round"),
    event(1, "a", "coordinator: round", round=1, nodes=["a", "b"]),
    event(1, "b", "in a round"),
    event(2, "a", "in a round"),
    event(3, "a", "starts", local_rank=0),
    event(5, "a", "first step", local_rank=0),
    event(5, "b", "first step", local_rank=0),
    event(6, "a", "starts", local_rank=1),
    event(10, "a", "coordinator: lost", lost="b", why="node b is silent"),
    event(10.5, "a", "asks for a round"),
    event(11, "a", "coordinator: round", round=2, nodes=["a"]),
    event(12, "a", "in a round"),
    event(14, "a", "first step", local_rank=0),
    event(20, "a", "done", local_rank=0),
    event(21, "a", "coordinator: closed"),
]


def test_a_story_has_a_lane_for_each_node_and_the_rounds() -> None:
    story = story_of(EVENTS, end_s=BEGIN_S + 20)
    parts = {
        lane.node: [(p.doing, p.begin_s - BEGIN_S, p.end_s - BEGIN_S) for p in lane.parts]
        for lane in story.lanes
    }
    assert parts["a"] == [
        ("meets", 0, 2), ("starts", 2, 5), ("trains", 5, 10.5),
        ("meets", 10.5, 12), ("starts", 12, 14), ("trains", 14, 20),
    ]  # fmt: skip
    assert parts["b"] == [("starts", 1, 5), ("trains", 5, 10)]
    faults = {lane.node: [at - BEGIN_S for at, _ in lane.faults] for lane in story.lanes}
    assert faults == {"a": [], "b": [10]}
    rounds = [(r.number, r.num_nodes, r.begin_s - BEGIN_S, r.end_s - BEGIN_S) for r in story.rounds]
    assert rounds == [(1, 2, 1, 11), (2, 1, 11, 21)]


def test_what_goes_on_is_drawn_until_the_last_word_and_nothing_makes_no_story() -> None:
    story = story_of(EVENTS[:7], end_s=BEGIN_S + 9)
    assert [lane.parts[-1].end_s - BEGIN_S for lane in story.lanes] == [9, 9]
    nothing = story_of([{"event": "starts"}, {"wall": "broken", "event": "starts"}], end_s=0)
    assert (nothing.lanes, nothing.rounds) == ([], [])
