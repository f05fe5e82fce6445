"""Bundles that are alike: how many there are, and what the device of each of their ranks is.

    shape 1,1 on nodes of 2 2 | 1 1 1 1 devices: three bundles inside a node, two that span nodes

Nodes are taken by their kinds, so that 100,000 cost as much as 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import gcd

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.cluster import Cluster, NodeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Bundles whose ranks have the same devices.

    Args:
        kinds: of the node of each rank, in the order of a bundle's ranks.
        count: of bundles.
    """

    kinds: tuple[NodeKind, ...]
    count: int

    @property
    def speed(self) -> float:
        """Of all devices of a bundle together."""
        return sum(kind.speed for kind in self.kinds)

    @property
    def top_speed(self) -> float:
        """Of its fastest device."""
        return max(kind.speed for kind in self.kinds)


Run = tuple[NodeKind, int]
"""Nodes of one kind that follow each other, and their number."""


def runs_of(cluster: Cluster, node_order: Sequence[int] = ()) -> list[Run]:
    """The nodes in their places, as few runs."""
    if not node_order:
        return [(kind, kind.count) for kind in cluster.kinds if kind.count]
    by_node = [kind for kind in cluster.kinds for _ in range(kind.count)]
    return [(kind, len(list(same))) for kind, same in groupby(by_node[n] for n in node_order)]


def teams_of(runs: Iterable[Run], shape: Shape) -> list[Team]:
    """The bundles that the nodes hold, by what their devices are; none: not a whole one.

    As `Topology.bundles` has it: a node that holds whole bundles has only those; smaller ones are
    strung together.
    """
    size = shape.size
    counts: dict[tuple[NodeKind, ...], int] = {}
    begun: list[NodeKind] = []
    for kind, count in runs:
        if kind.devices >= size:
            alike = (kind,) * size
            counts[alike] = counts.get(alike, 0) + count * (kind.devices // size)
            continue
        left = kind.devices * count
        # First the bundle that the nodes before have begun, then whole ones, then a new one.
        fill = min(size - len(begun), left) if begun else 0
        begun += [kind] * fill
        if len(begun) == size:
            counts[tuple(begun)] = counts.get(tuple(begun), 0) + 1
            begun = []
        whole, rest = divmod(left - fill, size)
        if whole:
            counts[(kind,) * size] = counts.get((kind,) * size, 0) + whole
        if rest:
            begun = [kind] * rest
    return [Team(kinds=kinds, count=count) for kinds, count in counts.items()]


def small_topology(runs: Sequence[Run], shape: Shape, chunks: int = 1) -> Topology | None:
    """A layout with the same kinds of bundles and of crossings, on few nodes.

    Bundles that are strung together from nodes of one kind begin anew at a node's first device
    after size / gcd(size, devices) nodes; so whole such periods of them can be left out.

    Returns:
        None where there is not one bundle.
    """
    devices: list[int] = []
    for kind, count in runs:
        period = shape.size // gcd(shape.size, kind.devices) if kind.devices else 1
        few = count if count < 3 * period else 2 * period + count % period
        devices += [shape.usable_devices(kind.devices)] * few
    try:
        return Topology(shape, tuple(devices), chunks)
    except ConfigError:
        return None


def spread(total: int, teams: Sequence[Team]) -> list[int]:
    """Micro-batches of a bundle of each team: as few as can be on the one that is busy longest.

    Args:
        total: of all bundles.
        teams: their speed counts.
    """
    if len(teams) == 1:
        return [-(-total // teams[0].count)]
    speeds = [team.speed for team in teams]
    low = total / sum(team.speed * team.count for team in teams)
    shares = [int(low * speed + 1e-9) for speed in speeds]
    # What rounding down left over goes where it ends the earliest.
    while sum(n * t.count for n, t in zip(shares, teams, strict=True)) < total:
        first = min(range(len(teams)), key=lambda i: (shares[i] + 1) / speeds[i])
        shares[first] += 1
    return shares


def orders_of(cluster: Cluster, most: int = 60) -> Iterator[tuple[int, ...]]:
    """Orders of the nodes that differ in what stands where; the one as it is comes first, empty.

    All of them where there are few; else the kinds in blocks, and in turns.
    """
    yield ()
    kinds = [index for index, kind in enumerate(cluster.kinds) for _ in range(kind.count)]
    if len(set(kinds)) < 2:
        return
    seen = {tuple(kinds)}
    for row in _rows(kinds, most):
        if row not in seen:
            seen.add(row)
            yield _as_nodes(kinds, row)


def _rows(kinds: list[int], most: int) -> Iterator[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for row in _permutations(kinds):
        found.append(row)
        if len(found) > most:
            break
    else:
        yield from found
        return
    names = sorted(set(kinds))
    counts = {name: kinds.count(name) for name in names}
    for first in range(len(names)):
        turned = names[first:] + names[:first]
        for block in (turned, turned[::-1]):
            yield tuple(name for name in block for _ in range(counts[name]))
            # In turns: the n-th of c nodes of a kind stands at (n + 1/2) / c of the way.
            places = [
                ((n + 0.5) / counts[k], i, k) for i, k in enumerate(block) for n in range(counts[k])
            ]
            yield tuple(kind for _, _, kind in sorted(places))


def _permutations(row: list[int]) -> Iterator[tuple[int, ...]]:
    """All different ones, in the order of a dictionary."""
    now = sorted(row)
    while True:
        yield tuple(now)
        # The last place that can grow takes the next larger value behind it; the rest is turned.
        grows = next((i for i in reversed(range(len(now) - 1)) if now[i] < now[i + 1]), None)
        if grows is None:
            return
        other = next(i for i in reversed(range(len(now))) if now[i] > now[grows])
        now[grows], now[other] = now[other], now[grows]
        now[grows + 1 :] = reversed(now[grows + 1 :])


def _as_nodes(kinds: Sequence[int], row: Sequence[int]) -> tuple[int, ...]:
    """Numbers of nodes for a row of kinds, those of a kind in their order."""
    left = {kind: iter([n for n, k in enumerate(kinds) if k == kind]) for kind in set(kinds)}
    return tuple(next(left[kind]) for kind in row)
