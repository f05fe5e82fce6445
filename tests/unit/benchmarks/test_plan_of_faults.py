from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults.plan import EVERYWHERE, WITH_LINKS, plan_blows
from benchmarks.faults.topologies import SHAPES

SLOTS = (4, 2, 1)


@given(seed=st.integers(), count=st.integers(0, 60), has_links=st.booleans())
def test_a_plan_depends_on_nothing_but_its_arguments(
    seed: int, count: int, has_links: bool
) -> None:
    plan = plan_blows(seed, count, SLOTS, has_links=has_links)
    assert plan == plan_blows(seed, count, SLOTS, has_links=has_links)
    assert plan == plan_blows(seed, count + 5, SLOTS, has_links=has_links)[:count]
    assert len(plan) == count


@given(seed=st.integers())
def test_whom_it_hits_is_there_and_never_more_than_two_come_at_a_time(seed: int) -> None:
    plan = plan_blows(seed, 50, SLOTS, has_links=True)
    assert all(blow.local_rank < SLOTS[blow.node] for blow in plan)
    assert not plan[0].is_second
    assert not any(a.is_second and b.is_second for a, b in pairwise(plan))


def test_every_kind_comes_and_links_are_cut_only_where_there_are_any() -> None:
    assert {b.kind for b in plan_blows(1, 200, SLOTS, has_links=True)} == set(WITH_LINKS)
    assert {b.kind for b in plan_blows(1, 200, SLOTS, has_links=False)} == set(EVERYWHERE)
    assert any(b.is_second for b in plan_blows(1, 200, SLOTS, has_links=True))


def test_where_shapes_change_two_nodes_go_at_once_and_none_while_another_is_dealt_with() -> None:
    plan = plan_blows(1, 200, SHAPES.slots, has_links=True, kinds=SHAPES.kinds, pairs=SHAPES.pairs)
    assert {b.kind for b in plan} == {*WITH_LINKS, "kill two"}
    assert not any(b.is_second for b in plan)


def test_another_seed_is_another_plan() -> None:
    assert plan_blows(1, 20, SLOTS, has_links=True) != plan_blows(2, 20, SLOTS, has_links=True)
