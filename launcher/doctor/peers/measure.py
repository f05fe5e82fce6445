"""Measures one direction of a link: there and back for small messages, then a stream.

source -- ping, 64 bytes ----> target          latency
       <- the same ------------
source -- bytes, as fast as they go ---->      rate: what the target counts, by its own clock
       <- {"bytes": ..., "seconds": ...} -

The target counts only after a first part of the time: a link that was idle lets a burst pass.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass

from bundlerun.launcher.doctor.peers.wire import Link, Reach, Unreached

PING = b"bundlerun doctor".ljust(64, b".")
NUM_PINGS = 30
PING_LIMIT_S = 3.0
SKIPPED = 0.25
"""Share of the time that is not counted."""
MOST_SECONDS = 5.0
STALL_S = 3.0
"""Silence of a stream after which it stands."""
_CHUNK = bytes(256 << 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What one direction does. rtt_s: the quickest of several. bytes_per_s: 0 where it stands."""

    rtt_s: float
    bytes_per_s: float


def measure(link: Link, seconds: float) -> Stream:
    """The source's side, on a connection that is proven.

    Raises:
        Unreached: it broke.
    """
    link.send({"hello": "measure", "seconds": seconds})
    link.read(PING_LIMIT_S)
    try:
        rtt_s = _pings(link.sock)
        _pour(link.sock, seconds + 2 * STALL_S)
    except TimeoutError as exc:
        raise Unreached(Reach.DROPPED) from exc
    except OSError as exc:
        raise Unreached(Reach.BROKEN) from exc
    answer = link.read(2 * STALL_S)
    # What still waits to be sent goes at once: else it would be in the way of the next measure.
    link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    counted_s = float(answer.get("seconds", 0.0))
    rate = float(answer.get("bytes", 0)) / counted_s if counted_s > 0 else 0.0
    return Stream(rtt_s=rtt_s, bytes_per_s=rate)


def _pings(sock: socket.socket) -> float:
    sock.settimeout(PING_LIMIT_S)
    times = []
    for _ in range(NUM_PINGS):
        start = time.perf_counter()
        sock.sendall(PING)
        _receive(sock, len(PING))
        times.append(time.perf_counter() - start)
    return min(times)  # what the network takes; more is other work on the nodes


def _receive(sock: socket.socket, num_bytes: int) -> None:
    left = num_bytes
    while left:
        data = sock.recv(left)
        if not data:
            raise ConnectionResetError
        left -= len(data)


def _pour(sock: socket.socket, limit_s: float) -> None:
    """Sends until the target has something to say, or for so long."""
    deadline = time.monotonic() + limit_s
    sock.setblocking(False)
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            readable, writable, _ = select.select([sock], [sock], [], left_s)
            if readable:
                return
            if writable:
                try:
                    sock.send(_CHUNK)
                except BlockingIOError:
                    continue
    finally:
        sock.setblocking(True)


def receive(link: Link, seconds: float) -> None:
    """The target's side, after the source's hello.

    Raises:
        Unreached: the connection broke.
    """
    seconds = min(max(seconds, 0.01), MOST_SECONDS)
    link.send({"ready": True})
    sock = link.sock
    sock.settimeout(PING_LIMIT_S)
    try:
        for _ in range(NUM_PINGS):
            _receive(sock, len(PING))
            sock.sendall(PING)
        num_bytes, counted_s = _count(sock, seconds)
        link.send({"bytes": num_bytes, "seconds": counted_s})
        _drain(sock)
    except OSError as exc:
        raise Unreached(Reach.BROKEN) from exc


def _count(sock: socket.socket, seconds: float) -> tuple[int, float]:
    """Bytes that came, and in how many seconds, without the first part of them."""
    buffer = memoryview(bytearray(1 << 20))
    sock.settimeout(STALL_S)
    num_bytes, start, since = 0, 0.0, 0.0
    while True:
        try:
            received = sock.recv_into(buffer)
        except TimeoutError:
            break
        now = time.monotonic()
        if not received:
            break
        if not start:
            start = now
        elif not since and now - start > SKIPPED * seconds:
            since = now
        elif since:
            num_bytes += received
        # At least one piece is counted: on a slow link pieces are far apart.
        if num_bytes and now - start > seconds:
            return num_bytes, now - since
    return num_bytes, (time.monotonic() - since if since else 0.0)


def _drain(sock: socket.socket) -> None:
    """Takes what is still on its way: closing at once could lose our own last words."""
    sock.settimeout(STALL_S)
    deadline = time.monotonic() + STALL_S
    try:
        while time.monotonic() < deadline and sock.recv(1 << 20):
            pass
    except OSError:
        pass
