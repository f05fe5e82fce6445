"""What the kernel says of this process's TCP connections: how long each was held up by its wire.

A connection is busy while bytes are on their way that nobody has confirmed. Of that, the time in
which the other side had no room is the receiver's; the rest is the wire's.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TCP_INFO = 11
_SIZE = 512
_UNACKED = 8 + 4 * 4
"""Offsets in Linux's struct tcp_info: segments on their way that nobody has confirmed,"""
_RTT_US = 68
_RETRANSMITTED = 100
_ACKED_BYTES = 120
_NOT_SENT_BYTES, _LEAST_RTT_US, _SEGMENTS = 144, 148, 156
_BUSY_US, _NO_ROOM_US = 168, 176
_LEAST = 192


class Traffic(NamedTuple):
    """What was sent to one address.

    Args:
        num_bytes: that were confirmed. wire_s: that the wire took. unsent: bytes.
        retransmitted: segments that were sent again. segments: all that were sent.
        least_rtt_s: of all connections, the shortest time to an answer so far; 0: none yet.
        rtt_s: the longest of the times that they took lately.
    """

    num_bytes: int = 0
    wire_s: float = 0.0
    unsent: int = 0
    retransmitted: int = 0
    segments: int = 0
    least_rtt_s: float = 0.0
    rtt_s: float = 0.0

    def since(self, before: Traffic) -> Traffic:
        """What was added; connections that have ended since take theirs with them."""
        return self._replace(
            num_bytes=max(0, self.num_bytes - before.num_bytes),
            wire_s=max(0.0, self.wire_s - before.wire_s),
            retransmitted=max(0, self.retransmitted - before.retransmitted),
            segments=max(0, self.segments - before.segments),
        )

    def beside(self, other: Traffic) -> Traffic:
        """That of both, to one address."""
        least = [each for each in (self.least_rtt_s, other.least_rtt_s) if each]
        return Traffic(
            self.num_bytes + other.num_bytes,
            # Several connections to one node share its wire, at one time.
            self.wire_s + other.wire_s,
            self.unsent + other.unsent,
            self.retransmitted + other.retransmitted,
            self.segments + other.segments,
            min(least, default=0.0),
            max(self.rtt_s, other.rtt_s),
        )


def traffic() -> dict[str, Traffic]:
    """What this process has sent over its open connections, by the address of the other end."""
    found: dict[str, Traffic] = {}
    for address, each in _connections():
        found[address] = found.get(address, Traffic()).beside(each)
    return found


def growth(now: Mapping[str, Traffic], before: Mapping[str, Traffic]) -> dict[str, Traffic]:
    """What was added for each address."""
    return {address: each.since(before.get(address, Traffic())) for address, each in now.items()}


def _connections() -> Iterator[tuple[str, Traffic]]:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError, ValueError, struct.error):
            if not str(link.readlink()).startswith("socket:"):
                continue
            # A descriptor of its own: closing it leaves the connection alone.
            with socket.socket(fileno=os.dup(int(link.name))) as own:
                if own.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                told = own.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
                if len(told) >= _LEAST:
                    address = str(own.getpeername()[0])
                    yield address.removeprefix("::ffff:"), _traffic(told)


def _traffic(told: bytes) -> Traffic:
    (unacked,) = struct.unpack_from("I", told, _UNACKED)
    (acked,) = struct.unpack_from("Q", told, _ACKED_BYTES)
    (not_sent,) = struct.unpack_from("I", told, _NOT_SENT_BYTES)
    rtt_us, retransmitted, least_rtt_us, segments = (
        struct.unpack_from("I", told, offset)[0]
        for offset in (_RTT_US, _RETRANSMITTED, _LEAST_RTT_US, _SEGMENTS)
    )
    busy_us, no_room_us = struct.unpack_from("2Q", told, _BUSY_US)
    wire_s = max(0, busy_us - no_room_us) / 1e6
    # Segments count as one byte at least: what matters is whether anything is left.
    # Where nothing was measured yet, the least is the largest number there is.
    has_rtt = 0 < least_rtt_us < 1 << 31
    return Traffic(
        acked,
        wire_s,
        max(not_sent, unacked),
        retransmitted,
        segments,
        least_rtt_us / 1e6 if has_rtt else 0.0,
        rtt_us / 1e6 if has_rtt else 0.0,
    )
