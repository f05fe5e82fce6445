"""Who goes on with what ranks have kept for themselves: pure, from what each node has.

    kept in        on        now
    situation a    node 0    a rank of node 0 is in it     goes on with it
    situation b    node 1    a rank of node 2 is in it     node 1 sends it there
    situation c    node 1    nobody is                     each part to one node that has to do with
                                                           it: node 1 if it can be, else another

Each part comes to one node, however many have a copy from an earlier restore.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bundlerun.workers.snapshot.piece import Label, SnapshotId, Spec
from bundlerun.workers.snapshot.restore_plan import Inventory, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What ranks keep for themselves, as one of them sees it.

    Args:
        situation: that this rank is in; empty: nothing that it has kept is of use to another.
        belongs_to: the name in the run's state that a part with a name is for; None: for none.
    """

    situation: str = ""
    belongs_to: Callable[[str], str | None] = lambda _: None


class OwnTransfer(NamedTuple):
    """What one node sends to another."""

    source: int
    target: int
    label: Label
    specs: Mapping[str, Spec]


@dataclass(frozen=True, slots=True)
class OwnPlan:
    """What travels, in this order, and what each node takes up of situations that are no more.

    Args:
        taken: by node, then by situation: the names.
    """

    transfers: tuple[OwnTransfer, ...]
    taken: Mapping[int, Mapping[str, Sequence[str]]]


def plan_own(
    inventory: Inventory,
    which: SnapshotId,
    now: Mapping[str, int],
    nodes_of: Callable[[str], Collection[int]],
) -> OwnPlan:
    """Where all parts come to.

    Args:
        inventory: what ranks have kept for themselves on each node.
        which: the state that is gone on with.
        now: the node of the rank that is in a situation.
        nodes_of: the nodes that have to do with a part, by its name; of none it is nobody's.
    """
    pieces: defaultdict[str, list[tuple[int, Piece]]] = defaultdict(list)
    for node, here in enumerate(inventory):
        for piece in here:
            if piece.label.id == which:
                pieces[piece.label.situation].append((node, piece))
    transfers: list[OwnTransfer] = []
    taken: defaultdict[int, dict[str, list[str]]] = defaultdict(dict)
    for situation in sorted(pieces):
        moved: defaultdict[tuple[int, int], dict[str, Spec]] = defaultdict(dict)
        specs = {name: spec for _, piece in pieces[situation] for name, spec in piece.specs.items()}
        for name, holders in _holders(pieces[situation]).items():
            if situation in now:
                target: int | None = now[situation]
            else:
                target = _target(holders, nodes_of(name))
                if target is not None:
                    taken[target].setdefault(situation, []).append(name)
            if target is not None and target not in holders:
                moved[min(holders), target][name] = specs[name]
        transfers += [
            OwnTransfer(source, target, pieces[situation][0][1].label, found)
            for (source, target), found in sorted(moved.items())
        ]
    return OwnPlan(tuple(transfers), taken)


def _holders(pieces: Sequence[tuple[int, Piece]]) -> dict[str, set[int]]:
    """The nodes that have each part."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for node, piece in pieces:
        for name in piece.specs:
            found[name].add(node)
    return dict(found)


def _target(holders: Collection[int], wanted: Collection[int]) -> int | None:
    """The node that takes a part up; None: nobody can."""
    here = set(holders) & set(wanted)
    return min(here or wanted, default=None)
