"""Which nodes also keep the snapshots of stages that too few nodes run: pure.

node       0      1      2      3
runs       s0     s1     s2     s3         one bundle over four nodes
keeps too  s2     s3     s0     s1         half of the ring away
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundlerun.launcher.layout.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class BuddyCopy:
    """A rank's share of its stage's state, which goes to another node after each snapshot.

    Args:
        source: the rank whose share it is.
        target: the rank that takes it for its node.
    """

    source: int
    target: int


def buddy_copies(
    topology: Topology, num_copies: int, sites: Sequence[str] = ()
) -> tuple[BuddyCopy, ...]:
    """What is to be copied, so that each stage is in the memory of as many nodes as there can be.

    Args:
        topology: of the round.
        num_copies: nodes that are to have each stage, those that run it counted.
        sites: what each node shares with others that fail with it, such as a rack; empty: not
            known. Nodes of another site come first, then those furthest away in node order.
    """
    active = _active_ranks(topology)
    nodes_of: dict[int, list[int]] = {}
    for group in topology.sync_groups:
        nodes_of.setdefault(group.stage, []).append(group.node)
    found = []
    for stage, nodes in sorted(nodes_of.items()):
        missing = num_copies - len(nodes)
        if missing <= 0:
            continue
        # Any of those that run it will do, as they have the same.
        source = nodes[0]
        others = _others(source, [node for node in active if node not in nodes], topology, sites)
        for node in others[:missing]:
            takers = active[node]
            for number, rank in enumerate(topology.collect_ranks(stage, source)):
                found.append(BuddyCopy(source=rank, target=takers[number % len(takers)]))
    return tuple(found)


def _active_ranks(topology: Topology) -> dict[int, list[int]]:
    """Of each node that has some, in node order."""
    found: dict[int, list[int]] = {}
    for place in topology.places:
        if not place.is_spare:
            found.setdefault(place.node, []).append(place.rank)
    return found


def _others(
    source: int, nodes: Sequence[int], topology: Topology, sites: Sequence[str]
) -> list[int]:
    half = topology.num_nodes // 2

    def order(node: int) -> tuple[bool, int]:
        is_near = bool(sites) and bool(sites[source]) and sites[node] == sites[source]
        # From half the ring on: as each node goes as far, none is the buddy of many.
        return is_near, (node - source - half) % topology.num_nodes

    return sorted(nodes, key=order)
