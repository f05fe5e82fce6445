"""The process groups of one rank, made from the topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundlerun.launcher.choices import SchemeChoice
from bundlerun.launcher.layout.topology import Link, Place, Topology
from bundlerun.workers.rank.comm import Group, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The communicators this rank belongs to; a group of one is None, nothing is sent in it.

    `bundle` always talks through CPU memory; the legs of the sync and the links may use NCCL.
    """

    bundle: Group | None
    collect: Group | None
    distribute: Group | None
    exchange: tuple[Group, ...]
    """The leaders of this rank's shard, one per node; twice where an exchange has two halves."""
    flat: Group | None
    """All replicas of the stage, where the sync may need it."""
    links: dict[Link, Group]

    def close(self) -> None:
        """Ends all of them, in the order in which they were made."""
        legs = (*self.exchange, self.collect, self.distribute, self.flat, self.bundle)
        for group in (*legs, *self.links.values()):
            if group is not None:
                group.close()


def settled_sync(sync: SchemeChoice, backend: str, *, is_rounded: bool) -> SchemeChoice:
    """What `--sync` comes to on this network; "auto" is left where it is to be measured.

    NCCL has its own way inside a node and between nodes, which one all-reduce leaves to it.

    Args:
        sync: as configured.
        backend: what carries the gradients.
        is_rounded: whether they are to travel between nodes in a shorter form, which no single
            all-reduce could do.
    """
    if sync != "auto" or backend != "nccl":
        return sync
    return "local-master" if is_rounded else "flat"


def make_groups(topology: Topology, place: Place, network: Network, sync: SchemeChoice) -> Groups:
    """Makes the groups of `place`, and only those.

    Collective: every active rank. All ranks make theirs in one global order (legs by stage and
    node, then bundles and their links), so that no two of them can wait for each other.

    Args:
        topology: the layout of this round.
        place: this rank; not a spare.
        network: how to reach the others.
        sync: "local-master", "sharded", "flat" or "auto", which needs the groups of all three.
    """

    def leg(name: str, ranks: Sequence[int]) -> Group | None:
        return Group(network, name, ranks, network.backend) if len(ranks) > 1 else None

    stage, node = f"stage{place.stage}", f"node{place.node}"
    node_ranks = topology.collect_ranks(place.stage, place.node)
    is_flat, is_hybrid = sync in ("flat", "auto"), sync != "flat"
    shard = node_ranks.index(place.rank)
    num_shards = topology.num_shards(place.stage) if sync in ("sharded", "auto") else 1
    leads = is_hybrid and shard < num_shards
    leaders = topology.shard_leaders(place.stage, shard) if leads else ()
    num_halves = 1 if len(leaders) == 2 else 2
    halves = [leg(f"exchange{half}/{stage}/shard{shard}", leaders) for half in range(num_halves)]
    bundle_ranks = topology.bundles[place.bundle]
    name = f"bundle{place.bundle}"
    return Groups(
        collect=leg(f"collect/{stage}/{node}", node_ranks) if is_hybrid else None,
        exchange=tuple(group for group in halves if group is not None),
        distribute=leg(f"distribute/{stage}/{node}", node_ranks) if is_hybrid else None,
        flat=leg(f"flat/{stage}", topology.stage_ranks(place.stage)) if is_flat else None,
        bundle=Group(network, name, bundle_ranks, "gloo") if len(bundle_ranks) > 1 else None,
        links={
            link: Group(
                network,
                f"{name}/{link.kind.value}{link.chunk}/{link.src}-{link.dst}",
                (link.src, link.dst),
                network.backend,
                is_one_node=topology.places[link.src].node == topology.places[link.dst].node,
                is_link=True,
            )
            for link in topology.bundle_links(place.bundle)
            if place.rank in (link.src, link.dst)
        },
    )
