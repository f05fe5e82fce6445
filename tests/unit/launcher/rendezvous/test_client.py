"""A node's side of the wire."""

from __future__ import annotations

import asyncio
from typing import cast

from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.rendezvous.client import Client
from bundlerun.launcher.rendezvous.handshake import Card
from bundlerun.launcher.rendezvous.protocol import member
from bundlerun.launcher.rendezvous.protocol.messages import Seat
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.wire import Book

SEAT = Seat(name="n", incarnation="i", address="127.0.0.1", num_workers=1, candidate=-1)


class Wire:
    """What asyncio's transport does behind its end."""

    def __init__(self) -> None:
        self.is_over = False

    def write(self, data: bytes) -> None:
        if self.is_over:
            raise RuntimeError("Cannot call write() after write_eof()")

    async def drain(self) -> None:
        pass

    def write_eof(self) -> None:
        self.is_over = True


def test_a_beat_that_is_due_behind_the_last_word_is_not_sent() -> None:
    first = Member(seat=SEAT, num_candidates=1, lease_s=1.0, guided_at=0.0)
    client = Client(
        first,
        [Endpoint(host="127.0.0.1", port=1)],
        token=b"",
        run_id="job",
        heartbeat_s=0.1,
        card=cast(Card, None),
        act=lambda _: None,
        book=Book(),
    )
    wire = Wire()
    client._writer = cast(asyncio.StreamWriter, wire)
    client.apply(member.beat(client.member))
    asyncio.run(client.flush(1.0))
    client.apply(member.beat(client.member))
    assert wire.is_over
