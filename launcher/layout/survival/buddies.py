"""Which nodes also keep the snapshots of stages that too few nodes run: pure.

node       0      1      2      3
runs       s0     s1     s2     s3         one bundle over four nodes
keeps too  s2     s3     s0     s1         half of the ring away
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    topology: Topology,
    num_copies: int,
    sites: Sequence[str] = (),
    machines: Sequence[str] = (),
) -> tuple[BuddyCopy, ...]:
    """What is to be copied, so that each stage is in the memory of as many nodes as there can be.

    Args:
        topology: of the round.
        num_copies: nodes that are to have each stage, those that run it counted.
        sites: what each node shares with others that fail with it, such as a rack; empty: not
            known. Nodes of another site come first, then those furthest away in node order.
        machines: what each node, which is an agent, runs on; empty: not known, also for one node.
            Several on one machine count as one where there is another machine.
    """
    active = _active_ranks(topology)
    found = []
    for stage, nodes in sorted(nodes_with(topology).items()):
        # Any of those that run it will do, as they have the same.
        source = min(nodes)
        others = _others(source, [node for node in active if node not in nodes], topology, sites)
        for node in _chosen(nodes, others, num_copies, machines):
            takers = active[node]
            for number, rank in enumerate(topology.collect_ranks(stage, source)):
                found.append(BuddyCopy(source=rank, target=takers[number % len(takers)]))
    return tuple(found)


def nodes_with(topology: Topology, copies: Iterable[BuddyCopy] = ()) -> dict[int, set[int]]:
    """Per stage the nodes that have it in memory: those that run it, and those with a copy."""
    found: dict[int, set[int]] = {}
    for group in topology.sync_groups:
        found.setdefault(group.stage, set()).add(group.node)
    places = topology.places
    for one in copies:
        found[places[one.source].stage].add(places[one.target].node)
    return found


def _chosen(
    nodes: Iterable[int], others: Sequence[int], num_copies: int, machines: Sequence[str]
) -> list[int]:
    """Those of `others` that are to keep what `nodes` run."""

    def machine(node: int) -> str | int:
        return (machines[node] if machines else "") or node

    have, chosen = set(nodes), []
    seen = {machine(node) for node in have}
    # [1] A machine that is lost takes all of its agents with it.
    for node in others:
        if len(seen) < num_copies and machine(node) not in seen:
            chosen.append(node)
            seen.add(machine(node))
    # [2] No more machines: an agent's memory outlives at least the other agents of its machine.
    for node in others:
        if len(have) + len(chosen) < num_copies and node not in chosen:
            chosen.append(node)
    return chosen


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
