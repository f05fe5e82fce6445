"""Where the ranks of a plan are on a cluster: bundles, mates on a node, links between nodes.

Alike nodes are not looked at one by one: bundles that span small nodes begin at the same place
again after as many nodes as a bundle has devices, at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.candidate import Candidate
from bundlerun.launcher.planning.cluster import Cluster, NodeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The ranks of one kind of node, and what all of the cluster have in common.

    Args:
        num_bundles: of the whole cluster; 0: it does not hold one.
        nodes: of the kinds, the node of each that has the most of every stage: ranks by stage.
        crossings: stages whose link to the next one is between nodes, for some bundle.
    """

    num_bundles: int
    nodes: tuple[tuple[int, ...], ...]
    crossings: frozenset[int]

    def mates(self, stage: int) -> int:
        """The fewest ranks of a stage on a node that has one."""
        return min((node[stage] for node in self.nodes if node[stage]), default=1)

    def most_mates(self, stage: int) -> int:
        """The most of them."""
        return max((node[stage] for node in self.nodes), default=1)

    def microbatches(self, batch_size: int, samples: int) -> int:
        """Of a step, that a bundle does: the bundle that does the most."""
        return divided_up(divided_up(batch_size, samples), max(1, self.num_bundles))


def placement(shape: Shape, cluster: Cluster) -> Placement:
    """Where bundles of a shape are; quick for any number of nodes."""
    return _placement(shape, tuple((kind.count, kind.devices) for kind in cluster.kinds))


@lru_cache(maxsize=1024)
def _placement(shape: Shape, kinds: tuple[tuple[int, int], ...]) -> Placement:
    whole = sum(count * (devices // shape.size) for count, devices in kinds)
    small = sum(count * devices for count, devices in kinds if devices < shape.size)
    num_bundles = whole + small // shape.size
    if not num_bundles:
        return Placement(num_bundles=0, nodes=(), crossings=frozenset())
    few = [min(count, 1 if devices >= shape.size else shape.size) for count, devices in kinds]
    used = [shape.usable_devices(devices) for _, devices in kinds]
    topology = Topology(shape, tuple(u for n, u in zip(few, used, strict=True) for _ in range(n)))
    counts = [[0] * shape.num_stages for _ in topology.devices_per_node]
    for place in topology.places:
        if not place.is_spare:
            counts[place.node][place.stage] += 1
    nodes, first = [], 0
    for number in few:
        of_kind = counts[first : first + number]
        nodes.append(tuple(max(column) for column in zip(*of_kind, strict=True)))
        first += number
    return Placement(num_bundles=num_bundles, nodes=tuple(nodes), crossings=topology.node_crossings)


def pipeline_of(candidate: Candidate, cluster: Cluster) -> Pipeline:
    """What all bundles do; as `Pipeline.of`, which needs the whole topology."""
    shape, schedule = candidate.shape, candidate.schedule
    crossings = placement(shape, cluster).crossings
    if schedule == "eager-1f1b" and not crossings:
        crossings = frozenset(range(shape.num_stages - 1))
    return Pipeline(
        shape=shape,
        schedule=schedule,
        chunks_per_stage=candidate.chunks,
        slow_links=crossings,
    )


def ranks_of(kind: NodeKind, shape: Shape) -> int:
    """Ranks that a node of this kind runs."""
    return shape.usable_devices(kind.devices)
