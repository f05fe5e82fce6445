import doctest
import sys
from collections import Counter
from itertools import product
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout import topology as topology_module
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import (
    Link,
    LinkKind,
    Topology,
    linked_replicas,
)

BOTH_WAYS = (LinkKind.ACTIVATION, LinkKind.GRADIENT)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(lambda w: Shape(tuple(w)))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    shape = draw(shapes)
    nodes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8))
    nodes[0] += shape.size
    chunks = draw(st.integers(1, 3)) if shape.num_stages > 1 else 1
    return Topology(shape, tuple(draw(st.permutations(nodes))), chunks)


@given(topologies())
def test_every_rank_has_exactly_one_place_in_rank_order(topology: Topology) -> None:
    assert [place.rank for place in topology.places] == list(range(topology.world_size))
    assert [(p.node, p.local_rank) for p in topology.places] == [
        (node, local) for node, count in enumerate(topology.devices_per_node)
        for local in range(count)
    ]  # fmt: skip


@given(topologies())
def test_bundles_and_spare_ranks_are_all_ranks_once(topology: Topology) -> None:
    ranks = Counter([*topology.active_ranks, *topology.spare_ranks])
    assert ranks == Counter(range(topology.world_size))


@given(topologies())
def test_a_bundle_fills_every_position_of_the_shape_once(topology: Topology) -> None:
    wanted = list(product_positions(topology.shape.widths))
    for number, ranks in enumerate(topology.bundles):
        places = [topology.places[rank] for rank in ranks]
        assert [(p.stage, p.replica) for p in places] == wanted
        assert {p.bundle for p in places} == {number}


def product_positions(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(stage, replica) for stage, width in enumerate(shape) for replica in range(width)]


@given(topologies())
def test_bundles_are_numbered_by_their_first_rank(topology: Topology) -> None:
    firsts = [ranks[0] for ranks in topology.bundles]
    assert firsts == sorted(firsts)
    assert all(list(ranks) == sorted(ranks) for ranks in topology.bundles)


@given(topologies())
def test_a_bundle_spans_nodes_only_where_a_node_does_not_hold_one(topology: Topology) -> None:
    size = topology.shape.size
    for ranks in topology.bundles:
        nodes = {topology.places[rank].node for rank in ranks}
        if len(nodes) > 1:
            assert all(topology.devices_per_node[node] < size for node in nodes)


@given(topologies())
def test_only_the_devices_that_no_bundle_can_use_are_spare(topology: Topology) -> None:
    size = topology.shape.size
    small = sum(count for count in topology.devices_per_node if count < size)
    left = sum(count % size for count in topology.devices_per_node if count >= size)
    assert len(topology.spare_ranks) == left + small % size


@given(topologies())
def test_every_active_rank_is_in_exactly_one_collect_group_of_its_stage(
    topology: Topology,
) -> None:
    members = Counter(rank for group in topology.sync_groups for rank in group.ranks)
    assert members == Counter(topology.active_ranks)
    for group in topology.sync_groups:
        for rank in group.ranks:
            place = topology.places[rank]
            assert (place.stage, place.node) == (group.stage, group.node)


@given(topologies())
def test_each_node_has_one_local_master_per_stage_it_holds(topology: Topology) -> None:
    masters = [(p.node, p.stage) for p in topology.places if p.is_local_master]
    held = {(p.node, p.stage) for p in topology.places if not p.is_spare}
    assert Counter(masters) == Counter(held)
    assert all(topology.places[group.ranks[0]].is_local_master for group in topology.sync_groups)


@given(topologies())
def test_an_exchange_joins_the_local_masters_of_one_stage(topology: Topology) -> None:
    for stage, ranks in enumerate(topology.exchange_groups):
        wanted = [p.rank for p in topology.places if p.is_local_master and p.stage == stage]
        assert sorted(ranks) == wanted


@given(topologies())
def test_links_join_ranks_of_one_bundle_and_are_all_different(topology: Topology) -> None:
    assert len(set(topology.links)) == len(topology.links)
    for link in topology.links:
        src, dst = topology.places[link.src], topology.places[link.dst]
        assert src.bundle == dst.bundle == link.bundle
        assert src.stage != dst.stage


@given(topologies())
def test_activations_go_one_stage_on_and_gradients_come_the_same_way_back(
    topology: Topology,
) -> None:
    stage = {p.rank: p.stage for p in topology.places}
    forward = {(k.src, k.dst, k.chunk) for k in topology.links if k.kind is LinkKind.ACTIVATION}
    back = {(k.dst, k.src, k.chunk - 1) for k in topology.links if k.kind is LinkKind.GRADIENT}
    assert forward == back
    for src, dst, chunk in forward:
        assert stage[src] == chunk % topology.num_stages
        assert stage[dst] == (chunk + 1) % topology.num_stages
    per_bundle = {link.chunk for link in topology.bundle_links(0) if link.kind in BOTH_WAYS}
    assert per_bundle == set(range(topology.num_chunks if topology.num_chunks > 1 else 0))


@given(topologies())
def test_node_crossings_are_the_stages_whose_activations_leave_a_node(topology: Topology) -> None:
    place = topology.places
    assert topology.node_crossings == {
        place[link.src].stage
        for link in topology.links
        if link.kind is LinkKind.ACTIVATION
        and link.chunk < topology.num_stages - 1
        and place[link.src].node != place[link.dst].node
    }


@given(topologies())
def test_targets_go_straight_from_the_first_stage_to_the_last(topology: Topology) -> None:
    stage = {p.rank: p.stage for p in topology.places}
    ends = {(stage[k.src], stage[k.dst]) for k in topology.links if k.kind is LinkKind.TARGET}
    last = topology.num_stages - 1
    assert ends == ({(0, last)} if last else set())


@given(st.integers(1, 9), st.integers(1, 9))
def test_replicas_are_linked_exactly_where_they_share_a_microbatch(w: int, v: int) -> None:
    shared = {(j % w, j % v) for j in range(w * v)}
    assert set(linked_replicas(w, v)) == shared


@given(topologies())
def test_stage_ranks_are_the_replicas_in_bundle_order(topology: Topology) -> None:
    for stage in range(topology.num_stages):
        ranks = topology.stage_ranks(stage)
        assert {topology.places[rank].stage for rank in ranks} == {stage}
        assert len(ranks) == topology.num_bundles * topology.shape.widths[stage]


def test_the_picture_of_two_nodes_is_what_comes_out() -> None:
    topology = Topology(Shape((1, 1)), (4, 4))
    assert topology.bundles == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert [p.rank for p in topology.places if p.is_local_master] == [0, 1, 4, 5]
    assert topology.exchange_groups == ((0, 4), (1, 5))
    assert list(topology.bundle_links(1)) == [
        Link(1, LinkKind.ACTIVATION, 2, 3, chunk=0),
        Link(1, LinkKind.GRADIENT, 3, 2, chunk=1),
        Link(1, LinkKind.TARGET, 2, 3),
    ]


def test_chunks_wrap_from_the_last_stage_to_the_first() -> None:
    topology = Topology(Shape((1, 1)), (2,), chunks_per_stage=2)
    assert [link[1:] for link in topology.bundle_links(0)] == [
        (LinkKind.ACTIVATION, 0, 1, 0),
        (LinkKind.GRADIENT, 1, 0, 1),
        (LinkKind.ACTIVATION, 1, 0, 1),
        (LinkKind.GRADIENT, 0, 1, 2),
        (LinkKind.ACTIVATION, 0, 1, 2),
        (LinkKind.GRADIENT, 1, 0, 3),
        (LinkKind.TARGET, 0, 1, 0),
    ]


def test_a_bundle_larger_than_a_node_spans_neighbours() -> None:
    topology = Topology(Shape((1, 1, 1)), (2, 4, 1, 2, 1))
    assert topology.bundles == ((0, 1, 6), (2, 3, 4), (7, 8, 9))
    assert topology.spare_ranks == (5,)


@pytest.mark.parametrize("nodes", [(), (-1, 3)])
def test_a_job_without_nodes_is_refused(nodes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="no nodes"):
        Topology(Shape((1,)), nodes)


def test_too_few_devices_name_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"3 devices do not hold one bundle of shape 2,2 \(4"):
        Topology(Shape((2, 2)), (3,))


def test_the_work_of_placing_is_linear_in_the_ranks() -> None:
    """The aim is 100,000 ranks in a second; the number of lines run is the same on any machine."""

    def num_lines(nodes: int) -> int:
        count = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            topology = Topology(Shape((1, 1)), (8,) * nodes)
            sizes = (len(topology.places), len(topology.sync_groups), len(topology.links))
            exchange = topology.exchange_groups
        finally:
            sys.settrace(before)
        assert (*sizes, len(exchange[0])) == (8 * nodes, 2 * nodes, 12 * nodes, nodes)
        return count

    small, large = num_lines(100), num_lines(1_000)
    assert small > 8 * 100  # it counts
    assert large < 11 * small  # quadratic would be 100


def test_the_number_of_links_is_linear_in_the_ranks() -> None:
    small, large = (len(Topology(Shape((2, 2)), (4,) * nodes).links) for nodes in (10, 100))
    assert large == 10 * small


def test_positions_are_in_order_of_stage_then_replica() -> None:
    assert Topology(Shape((2, 1)), (3,)).positions == tuple(
        (s, r) for s, r in product(range(2), range(2)) if (s, r) != (1, 1)
    )


def test_the_example_of_the_docstring_is_true() -> None:
    found = doctest.testmod(topology_module)
    assert (found.failed, found.attempted) == (0, 3)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ((1, 1, 1, 1), "1,1,1,1"),
        ((1, 1, 1), "1,1,1"),
        ((1, 1), "1,1"),
        ((2, 2, 2), "1,1,1"),
        ((5,), "1,1,1,1"),
        ((4, 4), "1,1,1,1"),
    ],
)
def test_of_a_family_the_shape_is_taken_that_uses_the_most_devices(
    nodes: tuple[int, ...], shape: str
) -> None:
    assert str(Topology.best(Shape.parse("1,1,1,1|1,1,1|1,1"), nodes).shape) == shape


def test_too_few_devices_for_any_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 devices do not hold one bundle of shape 1,1 "):
        Topology.best(Shape.parse("1,1,1|1,1"), (1,))
