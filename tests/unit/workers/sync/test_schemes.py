"""What a rank's sync asks for, before there is any group."""

from __future__ import annotations

from itertools import combinations, product
from typing import get_args

import pytest

from bundlerun.launcher.choices import SchemeChoice, SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.rank.groups import Members
from bundlerun.workers.sync.schemes import SCHEMES, Ways, settled_sync

LAYOUTS = [
    ((1,), (1,)),
    ((1,), (3,)),
    ((1,), (2, 3, 1)),
    ((1, 1), (4, 4)),
    ((2, 1), (4, 2, 3)),
    ((1, 2, 1), (5, 3)),
]


def names_of(
    topology: Topology, rank: int, sync: SchemeChoice, *, is_serial: bool = False
) -> list[str]:
    ways = Ways.of(sync, topology, topology.places[rank], is_serial=is_serial)
    return sorted(members.name for members in ways.members)


def test_the_table_has_every_scheme_under_its_own_name() -> None:
    topology = Topology(Shape((1,)), (2, 2))
    holders = Holders.of(topology, [0])
    made = {name: make(holders, topology.places[0]) for name, make in SCHEMES.items()}
    assert tuple(made) == get_args(SchemeName)
    assert all(scheme.name == name for name, scheme in made.items())


def test_each_scheme_asks_for_the_groups_of_its_legs() -> None:
    topology = Topology(Shape((1,)), (2, 2))
    collect, distribute = "collect/stage0/node1", "distribute/stage0/node1"
    master = [collect, distribute, "exchange0/stage0/shard0"]
    assert names_of(topology, 2, "local-master") == master
    assert names_of(topology, 3, "local-master") == [collect, distribute]
    sharded = [collect, distribute, "exchange0/stage0/shard1"]
    assert names_of(topology, 3, "sharded") == sharded
    assert names_of(topology, 3, "flat") == ["flat/stage0"]
    assert names_of(topology, 3, "auto") == [*sharded, "flat/stage0"]


def test_stages_that_share_a_parameter_sum_it_as_one_with_one_leader_per_node() -> None:
    topology = Topology(Shape((1, 1, 1)), (3, 3))
    place = topology.places[5]
    ways = {sync: Ways.of(sync, topology, place, stages=(0, 2)) for sync in SCHEMES}
    assert {name: [m.ranks for m in each.chosen(None).members] for name, each in ways.items()} == {
        "local-master": [(3, 5), (3, 5)],
        "sharded": [(2, 5), (3, 5), (3, 5)],
        "flat": [(0, 2, 3, 5)],
    }
    assert ways["flat"].replicas == Members("flat/stage0+2", (0, 2, 3, 5))


def test_more_than_two_nodes_have_two_groups_for_an_exchange() -> None:
    topology = Topology(Shape((1,)), (1, 1, 1))
    wanted = ["exchange0/stage0/shard0", "exchange1/stage0/shard0"]
    assert names_of(topology, 1, "local-master") == wanted
    assert names_of(topology, 1, "local-master", is_serial=True) == wanted[:1]


def test_one_thread_needs_one_communicator_of_the_same_ranks() -> None:
    topology = Topology(Shape((1,)), (2, 2))
    wanted = ["collect/stage0/node1", "exchange0/stage0/shard1"]
    assert names_of(topology, 3, "sharded", is_serial=True) == wanted
    assert names_of(topology, 3, "local-master", is_serial=True) == wanted[:1]


def test_buckets_have_equal_parts_where_nccl_sums_all_shards_at_once() -> None:
    topology = Topology(Shape((1,)), (3, 2))
    found = {
        (sync, is_serial): Ways.of(
            sync, topology, topology.places[0], is_serial=is_serial
        ).num_parts
        for sync in get_args(SchemeName)
        for is_serial in (True, False)
    }
    assert {key for key, num_parts in found.items() if num_parts > 1} == {("sharded", True)}
    assert found["sharded", True] == 2


@pytest.mark.parametrize(("shape", "nodes"), LAYOUTS, ids=str)
@pytest.mark.parametrize("sync", get_args(SchemeChoice))
@pytest.mark.parametrize("is_serial", [False, True])
def test_all_members_of_a_group_ask_for_it_and_nobody_else(
    shape: tuple[int, ...], nodes: tuple[int, ...], sync: SchemeChoice, is_serial: bool
) -> None:
    topology = Topology(Shape(shape), nodes)
    asking: dict[Members, list[int]] = {}
    sets = [(stage,) for stage in range(len(shape))]
    for rank, stages in product(topology.active_ranks, [*sets, *combinations(range(3), 2)]):
        place = topology.places[rank]
        # A stage by itself, and each two that share a parameter.
        if place.stage in stages and max(stages) < len(shape):
            ways = Ways.of(sync, topology, place, is_serial=is_serial, stages=stages)
            for members in ways.members:
                asking.setdefault(members, []).append(rank)
    for members, ranks in asking.items():
        assert len(ranks) > 1
        assert sorted(members.ranks) == sorted(ranks)
    assert len({members.name for members in asking}) == len(asking)


@pytest.mark.parametrize(("shape", "nodes"), LAYOUTS, ids=str)
def test_all_replicas_of_a_stage_have_the_same_candidates(
    shape: tuple[int, ...], nodes: tuple[int, ...]
) -> None:
    topology = Topology(Shape(shape), nodes)
    for bundle, stage in product(topology.bundles, range(len(shape))):
        places = [topology.places[rank] for rank in bundle if topology.places[rank].stage == stage]
        found = [
            [scheme.name for scheme in Ways.of("auto", topology, place).candidates]
            for place in places
        ]
        assert ("sharded" in found[0]) == (Holders.of(topology, [stage]).num_shards > 1)
        assert found == [found[0]] * len(found)


def test_nothing_is_measured_over_nccl() -> None:
    assert settled_sync("auto", "nccl", EXACT) == "flat"
    assert settled_sync("auto", "nccl", ExchangeForm("bfloat16")) == "local-master"
    assert settled_sync("auto", "gloo", EXACT) == "auto"
    assert settled_sync("sharded", "nccl", EXACT) == "sharded"
    assert settled_sync("auto", "gloo", ExchangeForm(rank=4)) == "local-master"
