"""The process groups of one rank, made from the topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.topology import Link, Place, Topology
from workers.comm import Group, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The communicators this rank belongs to; a group of one is None, nothing is sent in it.

    `bundle` always talks through CPU memory; the legs of the sync and the links may use NCCL.
    """

    bundle: Group | None
    collect: Group | None
    exchange: Group | None
    distribute: Group | None
    links: dict[Link, Group]


def make_groups(topology: Topology, place: Place, network: Network) -> Groups:
    """Makes the groups of `place`, and only those.

    Collective: every active rank. All ranks make theirs in one global order (legs by stage and
    node, then bundles and their links), so that no two of them can wait for each other.

    Args:
        topology: the layout of this round.
        place: this rank; not a spare.
        network: how to reach the others.
    """

    def leg(name: str, ranks: Sequence[int]) -> Group | None:
        return Group(network, name, ranks, network.backend) if len(ranks) > 1 else None

    stage, node = f"stage{place.stage}", f"node{place.node}"
    node_ranks = topology.collect_ranks(place.stage, place.node)
    masters = topology.exchange_groups[place.stage] if place.is_local_master else ()
    bundle_ranks = topology.bundles[place.bundle]
    name = f"bundle{place.bundle}"
    return Groups(
        collect=leg(f"collect/{stage}/{node}", node_ranks),
        exchange=leg(f"exchange/{stage}", masters),
        distribute=leg(f"distribute/{stage}/{node}", node_ranks),
        bundle=Group(network, name, bundle_ranks, "gloo") if len(bundle_ranks) > 1 else None,
        links={
            link: Group(
                network,
                f"{name}/{link.kind.value}/{link.src}-{link.dst}",
                (link.src, link.dst),
                network.backend,
            )
            for link in topology.bundle_links(place.bundle)
            if place.rank in (link.src, link.dst)
        },
    )
