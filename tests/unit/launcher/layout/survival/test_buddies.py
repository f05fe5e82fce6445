"""Which nodes keep what others run."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.survival.buddies import BuddyCopy, buddy_copies, nodes_with
from bundlerun.launcher.layout.topology import Topology


def layout(shape: tuple[int, ...], *nodes: int) -> Topology:
    return Topology(Shape(shape), nodes)


def kept_by(topology: Topology, copies: tuple[BuddyCopy, ...]) -> dict[int, set[int]]:
    """The nodes that have each stage, whole."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for group in topology.sync_groups:
        found[group.stage].add(group.node)
    shares = Counter(
        (topology.places[one.source].stage, topology.places[one.target].node) for one in copies
    )
    for (stage, node), count in shares.items():
        source = next(one.source for one in copies if topology.places[one.source].stage == stage)
        mates = topology.collect_ranks(stage, topology.places[source].node)
        assert count == len(mates), "each share once"
        found[stage].add(node)
    return found


def test_one_bundle_over_four_nodes_is_kept_half_of_the_ring_away() -> None:
    pairs = [(one.source, one.target) for one in buddy_copies(layout((1,) * 4, 1, 1, 1, 1), 2)]
    assert pairs == [(0, 2), (1, 3), (2, 0), (3, 1)]


@pytest.mark.parametrize(
    ("topology", "num_copies"),
    [
        (layout((1, 1), 2, 2), 2),
        (layout((1,), 1, 1), 2),
        (layout((1, 1), 2), 2),
        (layout((1, 1), 1, 1), 1),
    ],
    ids=["replicas on two nodes", "data parallel", "one node", "not wanted"],
)
def test_nothing_is_copied_where_there_is_enough_or_nowhere_to(
    topology: Topology, num_copies: int
) -> None:
    assert buddy_copies(topology, num_copies) == ()


def test_replicas_send_their_shares_to_several_ranks_of_the_node() -> None:
    topology = layout((2, 2), 2, 2)
    copies = buddy_copies(topology, 2)
    assert [(one.source, one.target) for one in copies] == [(0, 2), (1, 3), (2, 0), (3, 1)]


def test_nodes_of_another_site_come_first() -> None:
    topology = layout((1,) * 4, 1, 1, 1, 1)
    copies = buddy_copies(topology, 2, sites=("r0", "r1", "r0", "r1"))
    assert [(one.source, one.target) for one in copies] == [(0, 3), (1, 0), (2, 1), (3, 2)]


@pytest.mark.parametrize(
    ("topology", "machines", "pairs"),
    [
        # one bundle over four nodes: half of the ring away is the same machine
        (layout((1,) * 4, 1, 1, 1, 1), "abab", [(0, 3), (1, 0), (2, 1), (3, 2)]),
        # replicas on one machine count as one
        (layout((1,), 1, 1, 1), "aab", []),
        (layout((1, 1), 2, 2), "aa", []),
        # there is one machine: the other agent is better than none
        (layout((1, 1), 1, 1), "aa", [(0, 1), (1, 0)]),
    ],
    ids=["another machine first", "three replicas", "two replicas", "one machine"],
)
def test_agents_of_one_machine_count_as_one(
    topology: Topology, machines: str, pairs: list[tuple[int, int]]
) -> None:
    copies = buddy_copies(topology, 2, (), tuple(machines))
    assert [(one.source, one.target) for one in copies] == pairs


def test_replicas_that_are_all_on_one_machine_are_copied_to_another() -> None:
    topology = layout((1, 1), 2, 2, 1, 1)
    runs = nodes_with(topology)
    assert runs == {0: {0, 1, 2}, 1: {0, 1, 3}}
    assert buddy_copies(topology, 2, (), ("a", "a", "b", "c")) == ()
    kept = kept_by(topology, buddy_copies(topology, 2, (), ("a", "a", "a", "b")))
    assert kept == {0: {0, 1, 2, 3}, 1: {0, 1, 3}}


def test_of_one_site_only_any_will_do() -> None:
    topology = layout((1, 1), 1, 1)
    assert len(buddy_copies(topology, 2, sites=("r0", "r0"))) == 2


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(1, 4),
    st.lists(st.sampled_from("abc"), min_size=7, max_size=7),
)
def test_each_stage_is_on_as_many_nodes_and_machines_as_there_can_be(
    widths: list[int], nodes: list[int], num_copies: int, machines: list[str]
) -> None:
    size = sum(widths)
    if sum(nodes) < size or not any(n >= size for n in nodes):
        nodes = [*nodes, size]
    topology = layout(tuple(widths), *nodes)
    active = {place.node for place in topology.places if not place.is_spare}
    wanted = min(num_copies, len(active))
    kept = kept_by(topology, buddy_copies(topology, num_copies))
    assert all(len(kept[stage]) >= wanted for stage in range(topology.num_stages))
    kept = kept_by(topology, buddy_copies(topology, num_copies, (), machines))
    assert all(len(kept[stage]) >= wanted for stage in range(topology.num_stages))
    apart = min(num_copies, len({machines[node] for node in active}))
    assert all(len({machines[n] for n in held}) >= apart for held in kept.values())
