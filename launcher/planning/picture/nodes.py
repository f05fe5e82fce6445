"""Nodes, the bundles on them, and what is sent between them in a step; what is alike once.

cell, x 16                     a bundle over two nodes
  node: 2 bundles of 2           node 0      node 1
    [s0*]-[s1*]                   [s0*]-------[s1*]
    [s0 ]-[s1 ]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.simulation.cells import Cell, cells

MOST_CELLS = 6
MOST_NODES = 8
"""Of a cell, that are shown."""
MOST_ROWS = 3
"""Bundles of a node that are shown; of many nodes that have some in common, of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBox:
    """The ranks of a stage of one bundle on one node.

    Args:
        stage: of them.
        count: of them, replicas of each other.
        is_master: whether the first of them is the local master.
    """

    stage: int
    count: int
    is_master: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBox:
    """A node.

    Args:
        kind: of node.
        rows: of each bundle that is shown, by its number in the cell, the stages that it has here.
        num_bundles: that have a rank here.
        num_idle: devices that no bundle uses.
    """

    kind: NodeKind
    rows: dict[int, tuple[StageBox, ...]]
    num_bundles: int
    num_idle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellBox:
    """Nodes that have bundles in common.

    Args:
        nodes: that are shown.
        num_nodes: of each such cell.
        num_bundles: of each such cell.
        count: of cells that are alike.
    """

    nodes: tuple[NodeBox, ...]
    num_nodes: int
    num_bundles: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What goes from a chunk of the model to the next one, and back.

    Args:
        is_between: whether it goes from node to node, for some bundle.
        cut: name of the place; empty: not known.
        forward_bytes, backward_bytes: of a bundle in a step; None: not known.
    """

    is_between: bool
    cut: str = ""
    forward_bytes: int | None = None
    backward_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a profile and a forecast say of a plan.

    Args:
        cuts: names of the places where the chunks after the first begin.
        forward_bytes, backward_bytes: of a micro-batch, that cross each of them.
        gradient_bytes: of each stage.
        egress_bytes: that a node sends in a step, the one that sends the most.
        microbatches: of a bundle in a step, the one that does the most.
    """

    cuts: tuple[str, ...]
    forward_bytes: tuple[int, ...]
    backward_bytes: tuple[int, ...]
    gradient_bytes: tuple[int, ...]
    egress_bytes: int
    microbatches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """All of it.

    Args:
        cells: that are shown.
        num_more_cells: unlike ones that are not.
        num_nodes, num_bundles: of the cluster.
        num_without: nodes that have no part in any bundle.
        chunks: of the model.
        widths: of the stages.
        messages: between the chunks.
        gradient_bytes: of each stage; empty: not known.
        egress_bytes: of the node that sends the most; None: not known.
        between: the link of a node to the others; None: not said.
    """

    cells: tuple[CellBox, ...]
    num_more_cells: int
    num_nodes: int
    num_bundles: int
    num_without: int
    chunks: Chunks
    widths: tuple[int, ...]
    messages: tuple[Message, ...]
    gradient_bytes: tuple[int, ...]
    egress_bytes: int | None
    between: Link | None

    @property
    def has_sums(self) -> bool:
        """Whether some stage has replicas, whose gradients are summed."""
        return self.num_bundles > 1 or max(self.widths) > 1

    @property
    def has_exchange(self) -> bool:
        """Whether some stage has replicas on several nodes."""
        if len(self.cells) > 1 or self.cells[0].count > 1:
            return True
        on = Counter(
            stage
            for node in self.cells[0].nodes
            for stage in {box.stage for row in node.rows.values() for box in row}
        )
        return max(on.values()) > 1


def nodes_of(
    cluster: Cluster,
    shape: Shape,
    *,
    chunks_per_stage: int = 1,
    node_order: Sequence[int] = (),
    cuts: Sequence[str] = (),
    known: Known | None = None,
) -> Nodes:
    """The nodes of a plan.

    Args:
        cluster: them.
        shape: of the bundles.
        chunks_per_stage: of the model.
        node_order: which node stands in which place; empty: as it is.
        cuts: as typed, where nothing is known; names only.
        known: by a profile; None: nothing is.

    Raises:
        ConfigError: no bundle fits.
    """
    found = cells(cluster, shape, node_order)
    chunks = Chunks(shape.num_stages, chunks_per_stage)
    crossings = {pair for cell in found for pair in _crossings(cell, shape, chunks)}
    names = known.cuts if known else tuple(cuts)
    times = known.microbatches if known else 0
    messages = tuple(
        Message(
            is_between=boundary in crossings,
            cut=names[boundary] if boundary < len(names) else "",
            forward_bytes=times * known.forward_bytes[boundary] if known else None,
            backward_bytes=times * known.backward_bytes[boundary] if known else None,
        )
        for boundary in range(chunks.num_chunks - 1)
    )
    largest = sorted(found.items(), key=lambda item: -item[1])[:MOST_CELLS]
    shown = [(cell, count) for cell, count in found.items() if (cell, count) in largest]
    return Nodes(
        cells=tuple(_cell(cell, count, shape) for cell, count in shown),
        num_more_cells=len(found) - len(shown),
        num_nodes=cluster.num_nodes,
        num_bundles=sum(len(cell.bundles) * count for cell, count in found.items()),
        num_without=cluster.num_nodes - sum(len(c.nodes) * n for c, n in found.items()),
        chunks=chunks,
        widths=shape.widths,
        messages=messages,
        gradient_bytes=known.gradient_bytes if known else (),
        egress_bytes=known.egress_bytes if known else None,
        between=cluster.between if cluster.between.bytes_per_s < float("inf") else None,
    )


def _stages(shape: Shape) -> list[int]:
    """Of the ranks of a bundle."""
    return [stage for stage, width in enumerate(shape.widths) for _ in range(width)]


def _crossings(cell: Cell, shape: Shape, chunks: Chunks) -> set[int]:
    """Numbers of the boundaries that some bundle has between two nodes."""
    if len(cell.nodes) == 1:
        return set()
    found: set[int] = set()
    stages = _stages(shape)
    for bundle in cell.bundles:
        on = [
            {n for n, s in zip(bundle, stages, strict=True) if s == t}
            for t in range(max(stages) + 1)
        ]
        for boundary in range(chunks.num_chunks - 1):
            ends = on[chunks.stage_of(boundary)] | on[chunks.stage_of(boundary + 1)]
            if len(ends) > 1:
                found.add(boundary)
    return found


def _cell(cell: Cell, count: int, shape: Shape) -> CellBox:
    stages = _stages(shape)
    used = [0] * len(cell.nodes)
    rows: list[dict[int, tuple[StageBox, ...]]] = [{} for _ in cell.nodes]
    num_bundles = [0] * len(cell.nodes)
    masters: set[tuple[int, int]] = set()
    for number, bundle in enumerate(cell.bundles):
        for node in sorted(set(bundle)):
            own = [stage for stage, place in zip(stages, bundle, strict=True) if place == node]
            used[node] += len(own)
            num_bundles[node] += 1
            boxes = []
            for stage in sorted(set(own)):
                is_master = (node, stage) not in masters
                masters.add((node, stage))
                boxes.append(StageBox(stage=stage, count=own.count(stage), is_master=is_master))
            if len(rows[node]) < MOST_ROWS:
                rows[node][number] = tuple(boxes)
    return CellBox(
        nodes=tuple(
            NodeBox(
                kind=kind,
                rows=rows[i],
                num_bundles=num_bundles[i],
                num_idle=kind.devices - used[i],
            )
            for i, kind in enumerate(cell.nodes[:MOST_NODES])
        ),
        num_nodes=len(cell.nodes),
        num_bundles=len(cell.bundles),
        count=count,
    )
