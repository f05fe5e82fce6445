"""Who passes the state on to whom, and what the first step waits for."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.run.passing_on import FirstGate, Passing, passings

CASES = [
    # shape, nodes, ranks before, passings
    ((1,), (1, 1, 1), 2, [(0, 2)]),
    ((1,), (1, 1, 1, 1), 2, [(0, 2), (1, 3)]),  # shared out among who has it
    ((1,), (2, 1), 2, [(0, 2), (1, 2)]),  # a node's replicas have a part each
    ((1,), (1, 2), 1, [(0, 1)]),  # the first of a node takes it for the others
    ((1, 1), (2, 2), 2, [(0, 2), (1, 3)]),  # each stage by itself
    ((1, 1), (1, 1, 2), 2, [(0, 2), (1, 3)]),  # from the node that has it
]


@pytest.mark.parametrize(("widths", "nodes", "before", "wanted"), CASES)
def test_each_stage_of_a_node_that_joins_gets_all_parts_of_one_node(
    widths: tuple[int, ...], nodes: tuple[int, ...], before: int, wanted: list[tuple[int, int]]
) -> None:
    topology = Topology(Shape(widths), nodes)
    found = passings(topology, before)
    assert found == [Passing(*pair) for pair in wanted]
    for each in found:
        source, target = topology.places[each.source], topology.places[each.target]
        assert source.stage == target.stage
        assert each.source < before <= each.target


class Copies:
    """Stands for snapshots."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def __getattr__(self, what: str) -> Any:
        return lambda *_: self.seen.append(f"{self.name}.{what}")


def gate(seen: list[str], given: Future[None]) -> FirstGate:
    before, own = Copies("before", seen), Copies("own", seen)
    return FirstGate(before, given, own)  # type: ignore[arg-type]


def test_the_first_step_waits_for_the_last_copy_of_before_and_later_ones_do_not() -> None:
    seen: list[str] = []
    given: Future[None] = Future()
    given.set_result(None)
    first = gate(seen, given)
    first.finish_copy(1.0)
    assert seen == ["before.finish_copy", "own.finish_copy"]
    seen.clear()
    first.before_first()
    first.before_last()
    assert seen == [
        "before.before_first", "own.before_first",
        "before.settle", "before.close", "own.before_last",
    ]  # fmt: skip
    seen.clear()
    first.before_first()
    first.before_last()
    first.finish_copy(1.0)
    assert seen == ["own.before_first", "own.before_last", "own.finish_copy"]


def test_a_state_that_was_not_passed_on_ends_the_step() -> None:
    seen: list[str] = []
    given: Future[None] = Future()
    given.set_exception(RuntimeError("rank 2 did not get the state"))
    with pytest.raises(RuntimeError, match="did not get the state"):
        gate(seen, given).before_last()
    assert "own.before_last" not in seen
