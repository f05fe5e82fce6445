"""What was measured of nodes and links is a cluster file that is read again."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from bundlerun.launcher.planning.cluster import Link
from bundlerun.launcher.planning.cluster_file import cluster_from
from bundlerun.launcher.planning.measured_cluster import MeasuredNode, cluster_text

NODE = MeasuredNode(
    name="a", devices=4, device_bytes=8 * 10**9, host_bytes=32 * 10**9, shm_bytes=16 * 10**9,
    loaders=2, cores=6, inside=Link(bytes_per_s=5e9, latency_s=5e-6), copy_s_per_byte=1e-10,
    send_s_per_byte=5e-10,
)  # fmt: skip
FAST = Link(bytes_per_s=1.25e9, latency_s=2e-5)
SLOW = Link(bytes_per_s=2.5e7, latency_s=1e-3)


def _named(*names: str) -> list[MeasuredNode]:
    return [replace(NODE, name=name) for name in names]


def test_nodes_and_links_that_are_alike_are_one_kind() -> None:
    links = dict.fromkeys(permutations(range(3), 2), FAST)
    found = cluster_from(cluster_text(_named("a", "b", "c"), links), "file")
    (kind,) = found.kinds
    assert (kind.count, kind.devices, kind.loaders) == (3, 4, 2)
    assert (kind.device_bytes, kind.host_bytes) == (8 * 10**9, 32 * 10**9)
    assert kind.inside == NODE.inside
    assert kind.host.cores == 6
    assert kind.host.copy_s_per_byte == pytest.approx(1e-10)
    assert kind.host.send_s_per_byte == pytest.approx(5e-10)
    assert found.between == FAST
    assert not found.pairs


def test_a_pair_that_does_something_else_is_said_by_its_slower_way() -> None:
    links = dict.fromkeys(permutations(range(3), 2), FAST)
    links[2, 0] = SLOW
    found = cluster_from(cluster_text(_named("a", "b", "c"), links), "file")
    assert [kind.name for kind in found.kinds] == ["a", "b", "c"]
    assert found.between == FAST
    assert dict(found.pairs) == {("a", "c"): SLOW}


def test_other_nodes_are_other_kinds_in_the_order_of_the_list() -> None:
    nodes = [*_named("a", "b"), replace(NODE, name="c", devices=2), *_named("d")]
    links = dict.fromkeys(permutations(range(4), 2), FAST)
    found = cluster_from(cluster_text(nodes, links), "file")
    assert [(kind.name, kind.count) for kind in found.kinds] == [("a", 2), ("c", 1), ("d", 1)]


def test_one_node_has_nothing_between() -> None:
    found = cluster_from(cluster_text(_named('odd "name"'), {}), "file")
    assert found.kinds[0].name == 'odd "name"'
    assert "[between]" not in cluster_text(_named("a"), {})
