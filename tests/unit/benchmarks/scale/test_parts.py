"""Many nodes at one coordinator, over real connections; the benchmark has thousands of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.scale.parts import LOOPBACK, SimulatedNode, Size, make_server
from bundlerun.launcher.rendezvous.protocol import member
from bundlerun.launcher.rendezvous.protocol.wire import Book
from bundlerun.launcher.rendezvous.tasks import Tasks

NODES = 40
LIMIT_S = 30.0


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def two_rounds() -> tuple[int, int]:
    """Bytes that all nodes get in the first round, and in the next."""
    size = Size(nodes=NODES, heartbeat_s=0.5, lease_s=60.0)
    server = make_server(size, lambda event, details: None)
    port = await server.listen(LOOPBACK, 0)
    # Each its own book, as in processes of their own.
    nodes = [SimulatedNode(number, port, size, Book()) for number in range(NODES)]
    tasks = [Tasks() for _ in nodes]
    with ExitStack() as stack:
        for node, own in zip(nodes, tasks, strict=True):
            stack.callback(own.cancel)
            own.spawn(node.run())
            node.apply(member.want(node.member))
        await until(lambda: all(node.entered[0] == 1 for node in nodes))
        first = sum(node.traffic[1] for node in nodes)
        tasks[7].cancel()
        dead = nodes.pop(7)
        dead.break_off()
        await until(lambda: all(node.entered[0] == 2 for node in nodes))
        last = nodes[0].member.last
        assert last is not None
        assert {seat.name for seat in last.seats} == {node.member.seat.name for node in nodes}
        following = sum(node.traffic[1] for node in nodes) - first
        await server.close(0.1)
    return first, following


def test_many_nodes_meet_and_meet_again_without_telling_each_all_of_it() -> None:
    first, following = asyncio.run(two_rounds())
    a_seat = 110
    # In full it would be a seat for each node to each node, several times over.
    assert first < NODES * (1200 + 40 * NODES)
    assert following < NODES * 1200 < NODES * NODES * a_seat
