"""What a plan says of the loss of a node."""

from __future__ import annotations

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.survival.losses import losses
from bundlerun.launcher.layout.survival.words import loss_document, loss_lines
from bundlerun.launcher.layout.topology import Topology


def lines(text: str, *nodes: int, min_nodes: int = 1, num_copies: int = 2) -> list[str]:
    shape = Shape.parse(text)
    topology = Topology.best(shape, nodes)
    found = list(losses(topology, shape, min_nodes=min_nodes, num_copies=num_copies))
    assert sorted(n for one in found for n in one.nodes) == list(range(len(nodes)))
    assert [one["nodes"] for one in loss_document(found)] == [list(one.nodes) for one in found]
    return loss_lines(found, has_snapshots=num_copies > 0)


NONE_LOST = "no finished step is lost"


@pytest.mark.parametrize(
    ("text", "nodes", "said"),
    [
        ("1,1", (2, 2), f"goes on as shape 1,1 on 2 devices, of 4 before; {NONE_LOST}"),
        (
            "1,1,1,1|1,1,1|1,1",
            (1, 1, 1, 1),
            f"goes on as shape 1,1,1 on 3 devices, of 4 before; {NONE_LOST}",
        ),
        ("1,1", (1, 1), f"the others wait for a node; {NONE_LOST}"),
    ],
)
def test_nodes_that_are_alike_have_one_line(text: str, nodes: tuple[int, ...], said: str) -> None:
    who = f"any of nodes {', '.join(map(str, range(len(nodes))))}"
    assert lines(text, *nodes) == [f"{who}: {said}"]


def test_what_one_node_alone_has_is_gone_with_it() -> None:
    assert lines("1,1|1", 1, 1, num_copies=1) == [
        "node 0: goes on as shape 1 on 1 devices, of 2 before; from the newest checkpoint, as "
        "nobody else has stage 0",
        "node 1: goes on as shape 1 on 1 devices, of 2 before; from the newest checkpoint, as "
        "nobody else has stage 1",
    ]


def test_without_snapshots_there_is_the_checkpoint() -> None:
    (line,) = lines("1", 2, 2, num_copies=0)
    assert line.endswith("; from the newest checkpoint")


def test_fewer_nodes_than_the_launch_wants_wait() -> None:
    (line,) = lines("1", 2, 2, min_nodes=2)
    assert "the others wait for a node" in line


def test_of_many_nodes_some_are_named() -> None:
    first, second = lines("1", *(8,) * 10, *(4,) * 2)
    assert first.startswith("any of nodes 0, 1, 2, 3, 4, 5 or 4 more: goes on as shape 1 on 80")
    assert second.startswith("any of nodes 10, 11: goes on as shape 1 on 84")
