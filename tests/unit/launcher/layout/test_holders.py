"""Which ranks hold the same state: the same for all who ask, and every rank in its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Topology, list[int]]:
    """A topology, and some of its stages."""
    widths = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    nodes = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)))
    shape = Shape(widths)
    topology = Topology(shape, (*nodes, shape.size))
    stages = draw(st.lists(st.integers(0, len(widths) - 1), min_size=1, unique=True))
    return topology, stages


@given(layouts())
def test_each_rank_of_the_stages_holds_it_once_and_nobody_else(
    layout: tuple[Topology, list[int]],
) -> None:
    topology, stages = layout
    holders = Holders.of(topology, stages)
    wanted = [p.rank for p in topology.places if p.stage in stages]
    assert sorted(holders.ranks) == wanted
    assert [rank for of_node in holders.by_node.values() for rank in of_node] == wanted
    for node, ranks in holders.by_node.items():
        assert {topology.places[rank].node for rank in ranks} == {node}
    assert Holders.of(topology, stages[::-1]) == holders  # in whatever order they are asked for


@given(layouts())
def test_of_one_stage_they_are_its_replicas(layout: tuple[Topology, list[int]]) -> None:
    topology, (stage, *_) = layout
    holders = Holders.of(topology, [stage])
    groups = {g.node: g.ranks for g in topology.sync_groups if g.stage == stage}
    assert holders.ranks == topology.stage_ranks(stage)
    assert holders.by_node == groups
    assert holders.leaders(0) == topology.exchange_groups[stage]
    assert holders.num_shards == min(len(ranks) for ranks in groups.values())
    assert holders.name == f"stage{stage}"


@given(layouts())
def test_each_shard_has_one_leader_on_every_node(layout: tuple[Topology, list[int]]) -> None:
    holders = Holders.of(*layout)
    shards = [holders.leaders(shard) for shard in range(holders.num_shards)]
    leading = [rank for leaders in shards for rank in leaders]
    assert len(set(leading)) == len(leading) == len(shards) * len(holders.by_node)


@pytest.mark.parametrize(
    ("stages", "by_node"),
    [
        ([0], {0: (0, 2), 1: (4,)}),
        ([0, 1], {0: (0, 1, 2, 3), 1: (4, 5)}),
    ],
)
def test_the_picture_is_what_comes_out(
    stages: list[int], by_node: dict[int, tuple[int, ...]]
) -> None:
    assert Holders.of(Topology(Shape((1, 1)), (4, 2)), stages).by_node == by_node
