"""A link that is bad for a while is told once, and once when it is not any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.sheet import Sheet
from bundlerun.launcher.why.sockets import Traffic
from bundlerun.workers.shares.links import LinkNews, Links
from bundlerun.workers.shares.sending import EVERY_S, Sending
from bundlerun.workers.shares.spent import Spent

TOPOLOGY = Topology(Shape((1,)), (1, 1, 1))
NODES = ("n0", "n1", "n2")


class Play:
    def __init__(self) -> None:
        self.now = 0.0
        self.links = Links(TOPOLOGY, NODES, clock=lambda: self.now)
        self.news: list[LinkNews] = []

    def run(self, seconds: float, lost: int) -> None:
        """Each sends to the next; the last one loses that many of 10,000 segments."""
        spent = {
            rank: Spent(
                node=float((rank + 1) % 3),
                sent_wall_s=2.0,
                num_bytes=1e8,
                wire_s=1.0,
                retransmitted=float(lost if rank == 2 else 0),
                segments=1e4,
                least_rtt_s=0.0002,
                rtt_s=0.001,
            )
            for rank in range(3)
        }
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            found = self.links.see(spent)
            if found is not None:
                self.news.append(found)


def test_a_lossy_link_is_told_once_and_taken_back_once() -> None:
    play = Play()
    play.run(30, lost=0)
    assert play.news == []
    play.run(30, lost=100)
    (news,) = play.news
    assert news.link is not None
    assert (news.link.source, news.link.to) == ("n2", "n0")
    play.run(30, lost=0)
    assert play.news[1:] == [LinkNews(None)]


def test_a_moment_of_loss_is_not_told() -> None:
    play = Play()
    play.run(10, lost=0)
    play.run(1.4 * EVERY_S, lost=100)
    play.run(30, lost=0)
    assert play.news == []


def test_a_rank_tells_of_the_node_whose_wire_took_longest() -> None:
    now = [0.0]
    counted = {"10.0.0.1": Traffic(), "10.0.0.2": Traffic(), "10.0.0.9": Traffic()}
    session: Any = SimpleNamespace(
        nodes=[SimpleNamespace(address=f"10.0.0.{i}", name=f"n{i}") for i in range(3)],
        place=SimpleNamespace(node=0),
    )
    sheet = Sheet.private()
    sending = Sending(session, sheet, look=lambda: dict(counted), clock=lambda: now[0])
    sending.restart()
    assert sending.lately[0] == -1

    def send(seconds: float, **more: int) -> None:
        now[0] += seconds
        counted["10.0.0.1"] = counted["10.0.0.1"]._replace(
            num_bytes=counted["10.0.0.1"].num_bytes + 10, wire_s=counted["10.0.0.1"].wire_s + 0.1
        )
        counted["10.0.0.2"] = counted["10.0.0.2"]._replace(
            num_bytes=counted["10.0.0.2"].num_bytes + 20,
            wire_s=counted["10.0.0.2"].wire_s + 0.5,
            **more,
        )
        sending.look()

    send(EVERY_S / 2)
    assert sending.lately[0] == -1, "it is not time yet"
    send(EVERY_S / 2, retransmitted=3, segments=7)
    assert sending.lately == (2.0, EVERY_S, 40.0, 1.0, 0.0, 3.0, 7.0, 0.0, 0.0)
    send(EVERY_S, retransmitted=4, segments=9)
    assert sending.lately == (2.0, EVERY_S, 20.0, 0.5, 0.0, 1.0, 2.0, 0.0, 0.0)
    # A word now and then whose answers take long is not what the node is told for.
    counted["10.0.0.1"] = counted["10.0.0.1"]._replace(wire_s=9.0)
    counted["10.0.0.2"] = counted["10.0.0.2"]._replace(num_bytes=1060)
    now[0] += EVERY_S
    sending.look()
    assert sending.lately[:3] == (2.0, EVERY_S, 1000.0)
    # The epoch's are those since it began.
    node, sent = sheet.sent
    assert (node, sent.num_bytes, sent.wire_s, sent.retransmitted) == (2, 1060.0, 1.5, 4.0)
