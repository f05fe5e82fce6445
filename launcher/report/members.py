"""Pure: who takes part in a run, as a picture in text; each node tells only of its own ranks.

node-a   bundle 0  r0* s0   r1* s1
         bundle 1  r2  s0   r3! s1     r3 failed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundlerun.launcher.console import noun_for
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Place, Topology
from bundlerun.launcher.run_folder.events import EventName, name_of

Rows = Sequence[Mapping[str, Any]]

_STATES: Mapping[EventName, str] = {
    "starts": "starts",
    "met": "makes its stage",
    "restored": "has its state",
    "first step": "trains",
    "spare": "is spare",
    "done": "is done",
    "stops": "has stopped",
    "failed": "failed",
    "rank gone": "died",
    "rank stopped": "was stopped",
    "rank silent": "is silent",
}
"""What a rank does after an event of its own."""
_AS_IT_SHOULD = ("trains", "is spare", "is done")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMembers:
    """The ranks of one node in its last round.

    ranks: what each does, by local rank. is_in: whether the node is in the run's last round.
    """

    name: str
    ranks: Mapping[int, str]
    is_in: bool = True


def members_of(events: Rows) -> list[NodeMembers]:
    """The members of the last round in its order, then nodes that have left it for good.

    Args:
        events: of all nodes.
    """
    rounds = [row for row in events if name_of(row) == "coordinator: round"]
    now = [str(name) for name in rounds[-1].get("nodes", ())] if rounds else []
    gone = {str(name) for row in rounds for name in row.get("nodes", ())} - set(now)
    # A node without our rendezvous has no rounds to tell of, only ranks.
    if not rounds:
        now = sorted({str(row.get("node")) for row in events if name_of(row) == "starts"})
    own: dict[str, list[Mapping[str, Any]]] = {}
    for row in events:
        own.setdefault(str(row.get("node")), []).append(row)
    return [
        NodeMembers(name=name, ranks=_ranks(own.get(name, [])) if is_in else {}, is_in=is_in)
        for names, is_in in ((now, True), (sorted(gone), False))
        for name in names
    ]


def _ranks(own: Rows) -> dict[int, str]:
    """What the ranks of a node do, by its own lines alone: their order is by one clock."""
    begins = [i for i, row in enumerate(own) if name_of(row) == "in a round"]
    states: dict[int, str] = {}
    for row in own[begins[-1] :] if begins else own:
        state = _STATES.get(name_of(row))
        if state is not None and isinstance(row.get("local_rank"), int):
            states[row["local_rank"]] = state
    return dict(sorted(states.items()))


def topology_of(members: Sequence[NodeMembers], shape: str, chunks: int = 1) -> Topology | None:
    """What the members are to each other; None where that cannot be told yet.

    Args:
        shape: of a bundle, as it is typed.
    """
    counts = tuple(max(node.ranks, default=-1) + 1 for node in members if node.is_in)
    try:
        return Topology.best(Shape.parse(shape), counts, chunks)
    except (ConfigError, ValueError):
        return None


def member_lines(
    members: Sequence[NodeMembers], topology: Topology | None, *, max_rows: int = 16
) -> Iterator[str]:
    """Yields the picture.

    Args:
        topology: of those that are in; None: only their ranks are counted.
        max_rows: of bundles; what is more is told in one line.
    """
    width = max((len(node.name) for node in members), default=0)
    rows: list[str] = []
    for index, node in enumerate(members):
        parts = list(_node_rows(index, node, topology))
        rows += [
            f"{node.name if not i else '':<{width}}  {part}".rstrip()
            for i, part in enumerate(parts)
        ]
    yield from rows[:max_rows]
    if len(rows) > max_rows:
        yield f"... {len(rows) - max_rows:,} more"


def _node_rows(index: int, node: NodeMembers, topology: Topology | None) -> Iterator[str]:
    if not node.is_in:
        yield "is no member any more"
        return
    if topology is None:
        names = {rank: f"local rank {rank}" for rank in node.ranks}
        count = len(names)
        yield f"{count} {noun_for(count, 'rank')}  {_odd_ones(node, names)}".rstrip()
        return
    places = [place for place in topology.places if place.node == index]
    for bundle in dict.fromkeys(place.bundle for place in places):
        here = [place for place in places if place.bundle == bundle]
        title = f"bundle {bundle}" if bundle >= 0 else "spare"
        boxes = "   ".join(_box(place, node, topology) for place in here)
        names = {place.local_rank: f"r{place.rank}" for place in here}
        yield f"{title:<10} {boxes}   {_odd_ones(node, names)}".rstrip()


def _box(place: Place, node: NodeMembers, topology: Topology) -> str:
    is_odd = node.ranks.get(place.local_rank) not in _AS_IT_SHOULD
    mark = "!" if is_odd else "*" if place.is_local_master else " "
    if place.is_spare:
        return f"r{place.rank}{mark}"
    replica = f".{place.replica}" if topology.shape.widths[place.stage] > 1 else ""
    return f"r{place.rank}{mark} s{place.stage}{replica}"


def _odd_ones(node: NodeMembers, names: Mapping[int, str]) -> str:
    """What those do that do not train, likes together."""
    together: dict[str, list[str]] = {}
    for local_rank, name in names.items():
        state = node.ranks.get(local_rank, "is not there yet")
        if state not in _AS_IT_SHOULD:
            together.setdefault(state, []).append(name)
    return "; ".join(f"{', '.join(who)}: {state}" for state, who in together.items())
