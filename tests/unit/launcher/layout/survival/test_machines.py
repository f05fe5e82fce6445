"""Stages that are lost with one machine, though several nodes have them."""

from __future__ import annotations

import pytest

from bundlerun.launcher.layout.survival.machines import (
    OneMachine,
    on_one_machine,
    one_machine_text,
)


@pytest.mark.parametrize(
    ("holders", "machines", "found"),
    [
        ({0: {0, 1}, 1: {0, 1}}, ("a", "a"), [((0, 1), (0, 1))]),
        ({0: {0, 1}, 1: {1, 2}}, ("a", "a", "b"), [((0, 1), (0,))]),
        ({0: {0, 1}, 1: {2, 3}}, ("a", "a", "b", "b"), [((0, 1), (0,)), ((2, 3), (1,))]),
        ({0: {0, 1}}, ("a", "b"), []),
        ({0: {0}}, ("a", "a"), []),
        ({0: {0, 1}}, ("", ""), []),
        ({0: {0, 1}}, (), []),
    ],
    ids=["all", "some", "two of them", "apart", "one node", "not known", "nobody says"],
)
def test_stages_of_one_machine_are_found(
    holders: dict[int, set[int]],
    machines: tuple[str, ...],
    found: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    wanted = [OneMachine(nodes=nodes, stages=stages) for nodes, stages in found]
    assert on_one_machine(holders, machines) == wanted


def test_the_line_names_stages_and_nodes() -> None:
    one = OneMachine(nodes=(0, 2), stages=(1,))
    two = OneMachine(nodes=(1, 3), stages=(0, 2))
    assert one_machine_text([one, two], ["a", "b", "c", "d"]) == (
        "one machine alone has stage 1 (nodes a, c); another one stages 0, 2 (nodes b, d) in "
        "memory: if it is lost, a restart continues from the newest checkpoint"
    )
