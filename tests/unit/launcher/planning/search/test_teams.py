from __future__ import annotations

from collections import Counter

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.search.teams import (
    Team,
    orders_of,
    runs_of,
    small_topology,
    spread,
    teams_of,
)


def kind(name: str, count: int, devices: int, speed: float = 1.0) -> NodeKind:
    return NodeKind(name=name, count=count, devices=devices, speed=speed)


def cluster(*kinds: NodeKind) -> Cluster:
    return Cluster(kinds=kinds, between=Link(bytes_per_s=1e9))


@pytest.mark.parametrize("widths", [(1,), (1, 1), (2, 1), (1, 1, 1, 1), (3, 2)])
@pytest.mark.parametrize(
    "kinds", [((3, 4),), ((2, 1), (3, 2)), ((5, 3), (2, 8), (4, 1)), ((40, 3), (31, 2))]
)
def test_teams_are_the_bundles_of_the_topology(
    kinds: tuple[tuple[int, int], ...], widths: tuple[int, ...]
) -> None:
    nodes = cluster(*(kind(str(i), *each) for i, each in enumerate(kinds)))
    shape, runs = Shape(widths), runs_of(nodes)
    by_node = [k for k in nodes.kinds for _ in range(k.count)]
    topology = Topology(shape, tuple(shape.usable_devices(k.devices) for k in by_node))
    found = Counter(
        tuple(by_node[topology.places[rank].node].name for rank in bundle)
        for bundle in topology.bundles
    )
    teams = teams_of(runs, shape)
    assert {tuple(k.name for k in team.kinds): team.count for team in teams} == found
    small = small_topology(runs, shape)
    assert small is not None
    assert small.node_crossings == topology.node_crossings


def test_as_many_nodes_as_one_likes_are_looked_at_as_few() -> None:
    runs = runs_of(cluster(kind("a", 100_000, 3)))
    small = small_topology(runs, Shape((1, 1)))
    assert small is not None
    assert small.num_nodes < 10
    (team,) = teams_of(runs, Shape((1, 1)))
    assert team.count == 100_000
    assert sum(t.count for t in teams_of(runs, Shape((2, 2)))) == 75_000


def test_faster_bundles_do_more() -> None:
    fast, slow = kind("a", 1, 1, 3.0), kind("b", 1, 1)
    teams = [Team(kinds=(fast,), count=1), Team(kinds=(slow,), count=2)]
    assert spread(10, teams) == [6, 2]
    assert spread(1, teams) == [1, 0]
    assert spread(7, [Team(kinds=(fast,), count=3)]) == [3]


def test_each_order_of_a_few_nodes_is_tried_once() -> None:
    found = list(orders_of(cluster(kind("a", 2, 1), kind("b", 2, 1))))
    assert found[0] == ()
    rows = {tuple("aabb"[n] for n in order) for order in found[1:]}
    assert len(rows) == len(found) - 1 == 5
    assert all(sorted(order) == [0, 1, 2, 3] for order in found[1:])
    many = list(orders_of(cluster(kind("a", 30, 1), kind("b", 10, 1))))
    assert 2 < len(many) < 10
    assert all(sorted(order) == list(range(40)) for order in many[1:])
