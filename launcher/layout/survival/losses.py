"""What becomes of a run when a node is lost: pure, and linear in ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.layout.prospects import Prospects
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.survival.buddies import buddy_copies, nodes_with
from bundlerun.launcher.layout.topology import (
    NONE_FORESEEN,
    Topology,
    best_shape,
    num_bundles,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The loss of one node, out of those that are alike in what follows.

    Args:
        nodes: their numbers.
        shape: in which the others go on; None: they wait for a node.
        used: devices that they use then.
        was_used: devices that are used with it.
        lost_stages: stages that only this node has in memory: the newest checkpoint has them.
        throughput: foreseen, over that with it; 0: not known.
    """

    nodes: tuple[int, ...]
    shape: Shape | None
    used: int
    was_used: int
    lost_stages: tuple[int, ...] = ()
    throughput: float = 0.0


def losses(
    topology: Topology,
    shape: Shape,
    *,
    min_nodes: int = 1,
    num_copies: int = 2,
    prospects: Prospects = NONE_FORESEEN,
) -> Iterator[Loss]:
    """What the loss of each node does, those together that are alike.

    Args:
        topology: of all nodes.
        shape: with others that will do.
        min_nodes: with fewer the others wait.
        num_copies: nodes that have each stage in memory; 0: there are no snapshots.
        prospects: what is foreseen of the shapes.
    """
    counts = topology.devices_per_node
    alone = _alone(topology, num_copies)
    kinds: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for node, devices in enumerate(counts):
        kinds.setdefault((devices, alone.get(node, ())), []).append(node)
    for (_, lost), nodes in kinds.items():
        left = [*counts[: nodes[0]], *counts[nodes[0] + 1 :]]
        one = best_shape(shape, left, prospects)
        used = num_bundles(one.size, left) * one.size
        goes_on = used > 0 and len(left) >= max(1, min_nodes)
        was = prospects.best([topology.shape], counts)
        then = prospects.best([one], left) if goes_on else None
        yield Loss(
            nodes=tuple(nodes),
            shape=one if goes_on else None,
            used=used if goes_on else 0,
            was_used=topology.num_bundles * topology.shape.size,
            lost_stages=lost,
            throughput=then.samples_per_s / was.samples_per_s if then and was else 0.0,
        )


def _alone(topology: Topology, num_copies: int) -> dict[int, tuple[int, ...]]:
    """Per node the stages that no other one has in memory."""
    if not num_copies:
        every = tuple(range(topology.num_stages))
        return dict.fromkeys(range(topology.num_nodes), every)
    holders = nodes_with(topology, buddy_copies(topology, num_copies))
    found: dict[int, tuple[int, ...]] = {}
    for stage, nodes in sorted(holders.items()):
        if len(nodes) == 1:
            found[min(nodes)] = (*found.get(min(nodes), ()), stage)
    return found
