"""Which link between two nodes is worse than the others."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from itertools import permutations

from bundlerun.launcher.why.links import BadLink, LinkFault, Way, bad_link
from bundlerun.launcher.why.pace_words import link_text
from bundlerun.launcher.why.sockets import growth, traffic
from bundlerun.launcher.why.sums import Sent

NODES = ("a", "b", "c")
HEALTHY = Sent("", 100e6, 1.0, 0.0, 10_000.0, 0.0002, 0.004)
"""800 Mbit/s while the wire is busy; bytes queue up."""


def ways(bad: Sent | None = None, pair: tuple[str, str] = ("b", "c")) -> list[Way]:
    """All pairs of three nodes, for 4 s; one of them is otherwise."""
    return [
        Way(
            source,
            (bad if bad is not None and (source, to) == pair else HEALTHY)._replace(to=to),
            4.0,
        )
        for source, to in permutations(NODES, 2)
    ]


def test_equal_links_are_not_named() -> None:
    assert bad_link(ways()) is None
    # Nor where all lose alike.
    lossy = HEALTHY._replace(retransmitted=300.0)
    assert bad_link([way._replace(sent=lossy._replace(to=way.sent.to)) for way in ways()]) is None


def test_each_fault_is_named_with_its_pair_and_its_numbers() -> None:
    lossy = bad_link(ways(HEALTHY._replace(retransmitted=200.0, wire_s=3.0)))
    assert lossy is not None
    assert (lossy.source, lossy.to, lossy.why, lossy.value) == ("b", "c", LinkFault.LOSSY, 0.02)
    assert link_text(lossy) == (
        "the link from b to c loses: 2.00% of what it sends is sent again (200 segments), on "
        "others 0.00%; busy for 75% of the time"
    )
    slow = bad_link(ways(HEALTHY._replace(wire_s=4.0, rtt_s=0.03), ("c", "a")))
    assert slow is not None
    assert (slow.source, slow.to, slow.why) == ("c", "a", LinkFault.SLOW)
    assert link_text(slow) == (
        "the link from c to a is slow: 200 Mbit/s while it is busy, others 800 Mbit/s; busy for "
        "100% of the time"
    )
    far = bad_link(ways(HEALTHY._replace(wire_s=2.0, least_rtt_s=0.02, rtt_s=0.021)))
    assert far is not None
    assert far.why is LinkFault.FAR
    assert "20 ms there and back at best, others 0.2 ms" in link_text(far)
    assert BadLink.from_row(json.loads(json.dumps(asdict(far)))) == far


def test_small_messages_are_no_slow_link() -> None:
    # A hundredth of the bytes in as much time, and none of them waited for others.
    few = HEALTHY._replace(num_bytes=2e6, least_rtt_s=0.0002, rtt_s=0.00021)
    assert bad_link(ways(few)) is None


def test_what_costs_nobody_much_is_not_named() -> None:
    seldom = HEALTHY._replace(num_bytes=2e6, wire_s=0.2, rtt_s=0.03)
    assert bad_link(ways(seldom)) is None
    few = HEALTHY._replace(retransmitted=3.0, segments=100.0)
    assert bad_link(ways(few)) is None


def test_with_two_nodes_the_way_back_is_what_it_is_compared_with() -> None:
    there = Way("a", HEALTHY._replace(to="b", wire_s=3.9), 4.0)
    back = Way("b", HEALTHY._replace(to="a"), 4.0)
    found = bad_link([there, back])
    assert found is not None
    assert (found.source, found.to) == ("a", "b")
    assert bad_link([there]) is None


def test_the_kernel_tells_of_a_connection() -> None:
    size = 50_000  # less than what lies in buffers: nobody reads while it is sent
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.create_connection(door.getsockname()) as one,
        door.accept()[0] as other,
    ):
        before = traffic()
        one.sendall(bytes(size))
        left = size
        while left:
            left -= len(other.recv(left))
        other.sendall(b"all")
        assert one.recv(3) == b"all"
        found = growth(traffic(), before)["127.0.0.1"]
    assert found.num_bytes >= size
    assert 0 < found.segments <= found.num_bytes
    assert 0 < found.least_rtt_s < 1
