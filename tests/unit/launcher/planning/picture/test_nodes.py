"""What is drawn of nodes: what is alike once, and what is sent between them."""

from __future__ import annotations

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.picture.nodes import MOST_NODES, MOST_ROWS, Known, nodes_of
from tests.unit.launcher.planning.models import GBIT, nodes


def test_alike_nodes_are_drawn_once_and_their_bundles_are_counted() -> None:
    found = nodes_of(nodes(12_500, 9), Shape((1, 1)))
    (cell,) = found.cells
    (node,) = cell.nodes
    assert (cell.count, found.num_nodes, found.num_bundles) == (12_500, 12_500, 50_000)
    assert (node.num_bundles, len(node.rows), node.num_idle) == (4, MOST_ROWS, 1)
    # The first rank of each stage leads the sums of the node.
    assert [[box.is_master for box in row] for row in node.rows.values()] == [
        [True, True], [False, False], [False, False],
    ]  # fmt: skip
    assert not any(message.is_between for message in found.messages)


def test_a_bundle_over_several_nodes_goes_from_one_to_the_next() -> None:
    found = nodes_of(nodes(6, 3, bytes_per_s=GBIT), Shape((1, 2, 1)), cuts=("a", "b"))
    # Four nodes of three hold three bundles of four, and the other two one.
    assert [(each.num_nodes, each.num_bundles) for each in found.cells] == [(4, 3), (2, 1)]
    cell, rest = found.cells
    assert [node.num_idle for node in rest.nodes] == [0, 2]
    assert [[box.stage for box in row] for row in cell.nodes[0].rows.values()] == [[0, 1]]
    assert [[box.count for box in row] for row in cell.nodes[0].rows.values()] == [[1, 2]]
    assert list(cell.nodes[1].rows) == [0, 1]
    assert [message.is_between for message in found.messages] == [True, True]
    assert [message.cut for message in found.messages] == ["a", "b"]


def test_unlike_nodes_have_their_own_and_large_cells_are_cut_short() -> None:
    kinds = (
        NodeKind(name="large", count=3, devices=40),
        NodeKind(name="small", count=40, devices=1),
    )
    found = nodes_of(Cluster(kinds=kinds, between=Link(bytes_per_s=GBIT)), Shape((1,) * 20))
    large, small = found.cells
    assert (large.count, small.count) == (3, 2)
    assert (len(small.nodes), small.num_nodes) == (MOST_NODES, 20)
    assert [node.kind.name for node in small.nodes] == ["small"] * MOST_NODES


def test_sums_and_an_exchange_are_there_where_replicas_are() -> None:
    one = nodes_of(nodes(2, 1), Shape((1, 1)))
    assert (one.has_sums, one.has_exchange) == (False, False)
    wide = nodes_of(nodes(2, 4), Shape((4, 2)))
    assert (wide.has_sums, wide.has_exchange) == (True, False)
    split = nodes_of(nodes(3, 2), Shape((4, 2)))
    assert (split.has_sums, split.has_exchange) == (True, True)
    many = nodes_of(nodes(3, 2), Shape((1, 1)))
    assert (many.has_sums, many.has_exchange) == (True, True)


def test_bytes_of_a_step_are_those_of_its_micro_batches() -> None:
    known = Known(
        cuts=("x", "y", "z"), forward_bytes=(10, 20, 30), backward_bytes=(1, 2, 3),
        gradient_bytes=(100, 200), egress_bytes=7, microbatches=4,
    )  # fmt: skip
    found = nodes_of(nodes(2, 1), Shape((1, 1)), chunks_per_stage=2, known=known)
    assert [(m.cut, m.forward_bytes, m.backward_bytes) for m in found.messages] == [
        ("x", 40, 4), ("y", 80, 8), ("z", 120, 12),
    ]  # fmt: skip
    assert all(message.is_between for message in found.messages)
    assert (found.gradient_bytes, found.egress_bytes) == ((100, 200), 7)
    assert found.between is None
