"""Pure: which parts of a cluster do the same, so that one of each is enough to look at.

    nodes of 4, shape 1,1          each is a cell with two bundles: one cell, 1000 times
    nodes of 3, shape 1,1,1,1      bundles span nodes: three nodes and ... a cell of 4 nodes
                                   0 0 0 1 | 1 1 2 2 | 2 3 3 3

A cell is nodes that have bundles in common, and these bundles; as `Topology.bundles` has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heapreplace

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.cluster import Cluster, NodeKind


@dataclass(frozen=True, slots=True)
class Cell:
    """Nodes and their bundles.

    Args:
        nodes: in order.
        bundles: of each, the node (as an index) of each rank, in order of stage, then replica.
    """

    nodes: tuple[NodeKind, ...]
    bundles: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Cells that are alike, with equally much to do.

    Args:
        cell: one of them.
        count: of them.
        microbatches: of each bundle of the cell, in a step.
    """

    cell: Cell
    count: int
    microbatches: tuple[int, ...]


def cells(cluster: Cluster, shape: Shape, node_order: Sequence[int] = ()) -> dict[Cell, int]:
    """The cells of a cluster, and how many there are of each.

    Raises:
        ConfigError: no bundle fits.
    """
    found = _cells(cluster.kinds, shape, tuple(node_order))
    if not found:
        num_devices = sum(kind.count * kind.devices for kind in cluster.kinds)
        raise ConfigError(
            f"{num_devices} devices do not hold one bundle of shape {shape} ({shape.size} "
            "devices); add nodes or give a smaller --shape"
        )
    return dict(found)


@lru_cache(maxsize=64)
def _cells(
    kinds: tuple[NodeKind, ...], shape: Shape, node_order: tuple[int, ...]
) -> dict[Cell, int]:
    found: Counter[Cell] = Counter()
    for kind in kinds:
        if kind.devices >= shape.size:
            alone = tuple((0,) * shape.size for _ in range(shape.num_bundles(kind.devices)))
            found[Cell((kind,), alone)] += kind.count
    if any(kind.devices < shape.size for kind in kinds):
        nodes = [kind for kind in kinds for _ in range(kind.count)]
        ordered = [nodes[i] for i in node_order] if node_order else nodes
        found.update(_strung([k for k in ordered if k.devices < shape.size], shape.size))
    return dict(found)


def _strung(nodes: Sequence[NodeKind], size: int) -> Iterator[Cell]:
    """The cells of nodes that are too small for a bundle: their ranks are strung together."""
    first, filled = 0, 0
    bundles: list[tuple[int, ...]] = []
    under_way: list[int] = []
    for number, kind in enumerate(nodes):
        for _ in range(kind.devices):
            under_way.append(number - first)
            filled += 1
            if filled == size:
                bundles.append(tuple(under_way))
                under_way, filled = [], 0
        # A bundle ends where a node does: nothing joins it to the next one.
        if not filled and bundles:
            yield Cell(tuple(nodes[first : number + 1]), tuple(bundles))
            first, bundles = number + 1, []
    if bundles:
        most = 1 + max(node for bundle in bundles for node in bundle)
        yield Cell(tuple(nodes[first : first + most]), tuple(bundles))


def loads(
    found: dict[Cell, int], num_microbatches: int, seconds: Sequence[float], shape: Shape
) -> list[Load]:
    """The micro-batches of a step, shared out so that the slowest is done as early as can be.

    Args:
        found: cells, and how many there are of each.
        num_microbatches: of the step.
        seconds: that a micro-batch takes a device of speed 1, by stage.
        shape: of the bundles.
    """
    classes = [_Class(cell, count, _times(cell, seconds, shape)) for cell, count in found.items()]
    left = num_microbatches - _fill(classes, num_microbatches)
    line = [
        ((n + 1) * time, i, b)
        for i, each in enumerate(classes)
        for b, (n, time) in enumerate(zip(each.counts, each.times, strict=True))
    ]
    heapify(line)
    # One more for all that are alike, or for as many of them as are left.
    more: dict[int, list[tuple[int, int]]] = {}
    while left > 0:
        _, i, b = line[0]
        each = classes[i]
        if left >= each.count:
            each.counts[b] += 1
            left -= each.count
            heapreplace(line, ((each.counts[b] + 1) * each.times[b], i, b))
        else:
            more.setdefault(i, []).append((b, left))
            left = 0
    return [load for i, each in enumerate(classes) for load in each.loads(more.get(i, ()))]


@dataclass(slots=True)
class _Class:
    cell: Cell
    count: int
    times: list[float]
    counts: list[int]

    def __init__(self, cell: Cell, count: int, times: list[float]) -> None:
        self.cell, self.count, self.times = cell, count, times
        self.counts = [0] * len(times)

    def loads(self, more: Sequence[tuple[int, int]]) -> Iterator[Load]:
        """Its cells; some have a micro-batch more."""
        rest = self.count
        for bundle, number in more:
            counts = [n + (b == bundle) for b, n in enumerate(self.counts)]
            yield Load(cell=self.cell, count=number, microbatches=tuple(counts))
            rest -= number
        if rest:
            yield Load(cell=self.cell, count=rest, microbatches=tuple(self.counts))


def _times(cell: Cell, seconds: Sequence[float], shape: Shape) -> list[float]:
    """What a micro-batch takes each bundle, all stages together, as a run measures it."""
    stages = [stage for stage, width in enumerate(shape.widths) for _ in range(width)]
    return [
        sum(
            seconds[stage] / shape.widths[stage] / cell.nodes[node].speed
            for stage, node in zip(stages, bundle, strict=True)
        )
        or 1.0
        for bundle in cell.bundles
    ]


def _fill(classes: Sequence[_Class], num_microbatches: int) -> int:
    """Gives all bundles what they get at once in any case; how many that are."""
    pace = sum(each.count / time for each in classes for time in each.times)
    enough_s = num_microbatches / pace
    for each in classes:
        each.counts = [max(0, int(enough_s / time) - 1) for time in each.times]
    return sum(each.count * sum(each.counts) for each in classes)
