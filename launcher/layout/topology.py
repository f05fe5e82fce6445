"""Which rank is what: the place of every rank, every group of a sync, every link.

    shape 1,1 on two nodes of four devices             (collect goes to *, exchange joins the *)

      node 0                      node 1
      bundle 0     bundle 1       bundle 2     bundle 3
      r0*  r1*     r2   r3        r4*  r5*     r6   r7
      s0   s1      s0   s1        s0   s1      s0   s1

Pure arithmetic: plain values in, plain values out, no torch and no process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate, product
from math import gcd
from typing import NamedTuple

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.prospects import Prospects
from bundlerun.launcher.layout.shape import Shape

NONE_FORESEEN = Prospects()


class Place(NamedTuple):
    """What one rank is; `bundle`, `stage` and `replica` are -1 for a spare rank."""

    rank: int
    node: int
    local_rank: int
    bundle: int
    stage: int
    replica: int
    is_local_master: bool

    @property
    def is_spare(self) -> bool:
        """Whether no bundle uses the rank."""
        return self.bundle < 0


class LinkKind(Enum):
    """What travels on a link."""

    ACTIVATION = "activation"
    GRADIENT = "gradient"
    TARGET = "target"


class Link(NamedTuple):
    """One directed edge between two ranks of a bundle, with a communicator of its own."""

    bundle: int
    kind: LinkKind
    src: int
    dst: int
    chunk: int = 0
    """Chunk of the model whose output, or whose input's gradient, it carries; 0 for targets."""


@dataclass(frozen=True, slots=True)
class SyncGroup:
    """The ranks of one node that hold one stage; the first is the local master."""

    stage: int
    node: int
    ranks: tuple[int, ...]


def linked_replicas(width: int, other_width: int) -> Iterator[tuple[int, int]]:
    """Yields the replica pairs of two stages that have a micro-batch in common.

    Replica r of a stage of width w does the micro-batches j with j mod w = r (I3), so r and q
    share one exactly where r = q modulo gcd(w, v).
    """
    step = gcd(width, other_width)
    return (
        (replica, other)
        for replica, other in product(range(width), range(other_width))
        if replica % step == other % step
    )


def num_bundles(size: int, devices_per_node: Sequence[int]) -> int:
    """Bundles of so many devices that nodes hold: whole ones, and those that span small nodes."""
    whole = sum(count // size for count in devices_per_node if count >= size)
    return whole + sum(count for count in devices_per_node if count < size) // size


def best_shape(
    shape: Shape, devices_per_node: Sequence[int], prospects: Prospects = NONE_FORESEEN
) -> Shape:
    """That of a family which nodes go on in, see `Topology.best`; the last where none is held."""
    family = shape.family
    used = [num_bundles(one.size, devices_per_node) * one.size for one in family]
    held = [one for one, count in zip(family, used, strict=True) if count]
    best = prospects.best(held, devices_per_node)
    if best is not None:
        return best.shape
    # Where none has a bundle, the last refuses: it is the smallest, as a rule.
    return family[used.index(max(used)) if held else -1]


@dataclass(frozen=True)
class Topology:
    """The whole layout of one rendezvous round.

        >>> topology = Topology(Shape((1, 1)), devices_per_node=(4, 4))
        >>> topology.bundles
        ((0, 1), (2, 3), (4, 5), (6, 7))
        >>> topology.exchange_groups        # the local masters of each stage
        ((0, 4), (1, 5))

    Args:
        shape: of a bundle.
        devices_per_node: ranks that each node runs, in node order.
        chunks_per_stage: of the model, see `Chunks`.

    Raises:
        ConfigError: the devices do not hold one bundle.
    """

    shape: Shape
    devices_per_node: tuple[int, ...]
    chunks_per_stage: int = 1

    def __post_init__(self) -> None:
        if not self.devices_per_node or min(self.devices_per_node) < 0:
            raise ConfigError(f"no nodes to place ranks on: {list(self.devices_per_node)!r}")
        if self.num_bundles < 1:
            raise ConfigError(
                f"{self.world_size} devices do not hold one bundle of shape "
                f"{self.shape} ({self.shape.size} devices); "
                "add devices or give a smaller --shape"
            )

    @classmethod
    def best(
        cls,
        shape: Shape,
        devices_per_node: tuple[int, ...],
        chunks: int = 1,
        prospects: Prospects = NONE_FORESEEN,
    ) -> Topology:
        """The layout in that shape of a family which is foreseen to be the fastest.

        Where that is not known, it is the one that uses the most devices; of equals the first.

        Args:
            shape: the family.
            devices_per_node: ranks that each node runs, in node order.
            chunks: per stage, where there are several stages.
            prospects: what is foreseen, the same for all who ask.

        Raises:
            ConfigError: the devices hold one bundle of none of them.
        """
        one = best_shape(shape, devices_per_node, prospects)
        return cls(one, devices_per_node, chunks if one.num_stages > 1 else 1)

    @property
    def world_size(self) -> int:
        """All ranks, spare ones included."""
        return sum(self.devices_per_node)

    @property
    def num_nodes(self) -> int:
        """Nodes that take part."""
        return len(self.devices_per_node)

    @property
    def num_stages(self) -> int:
        """Stages of one bundle."""
        return self.shape.num_stages

    @cached_property
    def chunks(self) -> Chunks:
        """Which stage has which chunk of the model."""
        return Chunks(self.num_stages, self.chunks_per_stage)

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole model."""
        return self.chunks.num_chunks

    @cached_property
    def first_ranks(self) -> tuple[int, ...]:
        """The first global rank of each node."""
        return tuple(accumulate(self.devices_per_node, initial=0))[:-1]

    @cached_property
    def bundles(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of every bundle, in order of stage, then replica.

        Nodes that hold whole bundles come with their own; the ranks of smaller nodes are strung
        together in node order and cut into bundles that span neighbours.
        """
        size = self.shape.size
        found: list[tuple[int, ...]] = []
        small: list[int] = []
        for first, count in zip(self.first_ranks, self.devices_per_node, strict=True):
            if count < size:
                small.extend(range(first, first + count))
                continue
            # What is left after the last whole bundle stays spare: it does not join the small ones.
            for start in range(first, first + count - size + 1, size):
                found.append(tuple(range(start, start + size)))
        for start in range(0, len(small) - size + 1, size):
            found.append(tuple(small[start : start + size]))
        # Sorted by first rank, so that bundle numbers do not depend on which kind was cut first.
        return tuple(sorted(found))

    @property
    def num_bundles(self) -> int:
        """Bundles in the whole job."""
        return len(self.bundles)

    @cached_property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """(stage, replica) of each rank of a bundle, in the order of `bundles`."""
        return tuple((s, r) for s, width in enumerate(self.shape.widths) for r in range(width))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The place of every rank, by rank."""
        roles: list[tuple[int, int, int]] = [(-1, -1, -1)] * self.world_size
        for bundle, ranks in enumerate(self.bundles):
            for rank, (stage, replica) in zip(ranks, self.positions, strict=True):
                roles[rank] = (bundle, stage, replica)
        places: list[Place] = []
        for node, (first, count) in enumerate(
            zip(self.first_ranks, self.devices_per_node, strict=True)
        ):
            seen: set[int] = set()
            for rank in range(first, first + count):
                bundle, stage, replica = roles[rank]
                # The first rank of a stage on its node: it alone talks to other nodes in a sync.
                is_master = bundle >= 0 and stage not in seen
                seen.add(stage)
                places.append(Place(rank, node, rank - first, bundle, stage, replica, is_master))
        return tuple(places)

    @cached_property
    def active_ranks(self) -> tuple[int, ...]:
        """Ranks that some bundle uses."""
        return tuple(rank for bundle in self.bundles for rank in bundle)

    @cached_property
    def spare_ranks(self) -> tuple[int, ...]:
        """Ranks that no bundle uses."""
        return tuple(place.rank for place in self.places if place.is_spare)

    @cached_property
    def sync_groups(self) -> tuple[SyncGroup, ...]:
        """The collect (and distribute) groups: per stage, then node, the ranks that hold it."""
        members: dict[tuple[int, int], list[int]] = {}
        for place in self.places:
            if not place.is_spare:
                members.setdefault((place.stage, place.node), []).append(place.rank)
        return tuple(
            SyncGroup(stage, node, tuple(ranks)) for (stage, node), ranks in sorted(members.items())
        )

    @cached_property
    def _collect_ranks(self) -> dict[tuple[int, int], tuple[int, ...]]:
        return {(group.stage, group.node): group.ranks for group in self.sync_groups}

    def collect_ranks(self, stage: int, node: int) -> tuple[int, ...]:
        """The ranks of one node that hold one stage; the first is the local master."""
        return self._collect_ranks[stage, node]

    @cached_property
    def exchange_groups(self) -> tuple[tuple[int, ...], ...]:
        """Per stage, the local masters of all nodes."""
        masters: list[list[int]] = [[] for _ in self.shape.widths]
        for group in self.sync_groups:
            masters[group.stage].append(group.ranks[0])
        return tuple(tuple(ranks) for ranks in masters)

    def stage_ranks(self, stage: int) -> tuple[int, ...]:
        """All replicas of one stage, the one of bundle 0 first."""
        wanted = [i for i, (s, _) in enumerate(self.positions) if s == stage]
        return tuple(bundle[i] for bundle in self.bundles for i in wanted)

    @cached_property
    def link_pattern(self) -> tuple[tuple[LinkKind, int, int, int], ...]:
        """The links of any bundle, their ends as indices into its ranks; the chunk."""
        widths, last = self.shape.widths, self.num_stages - 1
        # Index of each stage's first rank in a bundle.
        starts = tuple(accumulate(widths, initial=0))
        pattern: list[tuple[LinkKind, int, int, int]] = []
        # By chunk, not by stage: with several chunks the last stage sends on to stage 0.
        for chunk in range(self.num_chunks - 1):
            here, there = self.chunks.stage_of(chunk), self.chunks.stage_of(chunk + 1)
            for r, q in linked_replicas(widths[here], widths[there]):
                front, rear = starts[here] + r, starts[there] + q
                pattern.append((LinkKind.ACTIVATION, front, rear, chunk))
                # The same pair backwards, with a communicator of its own (I5).
                pattern.append((LinkKind.GRADIENT, rear, front, chunk + 1))
        # Targets skip the stages between: only stage 0 reads the data (I4).
        if last > 0:
            for r, q in linked_replicas(widths[0], widths[last]):
                pattern.append((LinkKind.TARGET, r, starts[last] + q, 0))
        return tuple(pattern)

    @cached_property
    def node_crossings(self) -> frozenset[int]:
        """Stages from which some bundle's activations go to the next stage on another node."""
        found: set[int] = set()
        for ranks in self.bundles:
            nodes: list[set[int]] = [set() for _ in self.shape.widths]
            # Ranks of a bundle ascend, and so do their nodes: equal ends mean one node in all.
            if self.places[ranks[0]].node != self.places[ranks[-1]].node:
                for rank in ranks:
                    nodes[self.places[rank].stage].add(self.places[rank].node)
                found |= {s for s in range(self.num_stages - 1) if len(nodes[s] | nodes[s + 1]) > 1}
        return frozenset(found)

    def bundle_links(self, bundle: int) -> Iterator[Link]:
        """Yields the links of one bundle, in an order that every rank agrees on."""
        ranks = self.bundles[bundle]
        for kind, src, dst, chunk in self.link_pattern:
            yield Link(bundle, kind, ranks[src], ranks[dst], chunk)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """Every link of the job."""
        return tuple(link for b in range(self.num_bundles) for link in self.bundle_links(b))
