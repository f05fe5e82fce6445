"""Pure: the life of a run as its nodes saw it: when each waited, started and trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bundlerun.launcher.report.run_data import wall_s
from bundlerun.launcher.run_folder.events import EventName, name_of
from bundlerun.launcher.run_folder.outcome import incidents, lost_node
from bundlerun.launcher.run_folder.status import failure_text

Doing = Literal["meets", "starts", "trains"]
Rows = Sequence[Mapping[str, Any]]

_BEGINS: Mapping[EventName, Doing] = {
    "asks for a round": "meets",
    "in a round": "starts",
    "starts": "starts",
    "first step": "trains",
}
_ENDS: tuple[EventName, ...] = ("leaves", "closed", "done", "stops")
_FAULTS: tuple[EventName, ...] = ("failed", "rank gone", "rank stopped", "rank silent", "cut off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a node did from when to when, seconds since the epoch."""

    doing: Doing
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One node. faults: when one of its ranks failed or it was lost, and that in words."""

    node: str
    parts: list[Part] = field(default_factory=list)
    faults: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Who took part from when on."""

    number: int
    num_nodes: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All of it."""

    lanes: list[Lane]
    rounds: list[Round]


def story_of(events: Rows, *, end_s: float) -> Story:
    """The story that events tell.

    Args:
        events: of all nodes, by wall clock.
        end_s: until when what goes on is drawn, seconds since the epoch.
    """
    events = [row for row in events if math.isfinite(wall_s(row))]
    last_s = max([end_s, *(wall_s(row) for row in events)]) if events else end_s
    names = dict.fromkeys(str(row.get("node")) for row in events if name_of(row) in _BEGINS)
    about: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for row in events:
        for name in {str(row.get("node")), lost_node(row)} & about.keys():
            about[name].append(row)
    lanes = {name: _lane(name, rows, last_s) for name, rows in about.items()}
    for row in (row for found in incidents(events) for row in found):
        lane = lanes.get(lost_node(row) or str(row.get("node")))
        if lane is not None:
            lane.faults.append((wall_s(row), failure_text(row)))
    return Story(lanes=list(lanes.values()), rounds=_rounds(events, last_s))


def _lane(node: str, events: Rows, last_s: float) -> Lane:
    """The lane of a node, from the events that it tells and those that tell of its end."""
    lane = Lane(node=node)
    doing: Doing | None = None
    since_s = 0.0

    def change(to: Doing | None, at_s: float) -> None:
        nonlocal doing, since_s
        if doing is not None and at_s > since_s:
            lane.parts.append(Part(doing=doing, begin_s=since_s, end_s=at_s))
        doing, since_s = to, at_s

    for row in events:
        event, at_s = name_of(row), wall_s(row)
        if lost_node(row) == node:
            change(None, at_s)
        if str(row.get("node")) != node:
            continue
        if event in _BEGINS:
            # Each rank says so; the first one counts, and a rank that is late stops nobody.
            later = _BEGINS[event]
            if doing != later and not (doing == "trains" and event == "starts"):
                change(later, at_s)
        elif event in _FAULTS and doing == "trains":
            change("meets", at_s)
        elif event in _ENDS:
            change(None, at_s)
    change(None, last_s)
    return lane


def _rounds(events: Rows, last_s: float) -> list[Round]:
    rows = [row for row in events if name_of(row) == "coordinator: round"]
    over = [wall_s(row) for row in events if name_of(row) == "coordinator: closed"]
    ends = [*(wall_s(row) for row in rows[1:]), last_s][: len(rows)]
    found = []
    for row, next_s in zip(rows, ends, strict=True):
        begin_s = wall_s(row)
        closed = [at_s for at_s in over if begin_s <= at_s <= next_s]
        found.append(
            Round(
                number=int(row.get("round", 0)),
                num_nodes=len(row.get("nodes", ())),
                begin_s=begin_s,
                end_s=min([next_s, *closed]),
            )
        )
    return found
