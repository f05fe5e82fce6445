"""How exactly a shaped link keeps its rate: a plain TCP transfer each way."""

from __future__ import annotations

import socket
import time
from functools import partial
from itertools import pairwise
from statistics import median

from benchmarks.cluster.forked import TIMEOUT_S, Seat, run_ranks
from benchmarks.cluster.hosts import Hosts, Wire, open_hosts, why_not
from benchmarks.results.record import Check, Options, print_table

CLAIM = "a shaped link keeps its rate to 1 %, both ways at once"
MBIT_PER_S = (200, 400, 1000)
SECONDS = 1.0
TARGET = 0.01
_PORT = 29000
_NUM_SLICES = 20
"""A speed is the median over slices of a transfer, the first left out: this machine may stop for
some milliseconds now and then, which is not the link's doing."""

skip_reason = why_not


def run(options: Options) -> None:
    """Measures links of several rates."""
    rows, results, worst = [], [], 0.0
    for mbit in MBIT_PER_S:
        with open_hosts(2, Wire(mbit_per_s=mbit)) as hosts:
            for row in measure(hosts):
                worst = max(worst, abs(row["ratio"] - 1))
                rows.append((f"{mbit} Mbit/s, to host {row['host']}", *list(row.values())[1:]))
                results.append({"mbit_per_s": mbit, **row})
    print_table(("link", "payload Mbit/s", "possible", "ratio", "wire bytes, ratio"), rows)
    checks = [Check("off the rate, at most", worst, TARGET)]
    options.record("wire", {"mtu": hosts.wire.mtu, "transfers": results}, checks)


def measure(hosts: Hosts, seconds: float = SECONDS) -> list[dict[str, float]]:
    """Payload per second between the first two hosts, each sending at once.

    Returns:
        per host: what it received, what is possible, and the bytes that its peer's shaper counted
        over those of full frames.
    """
    num_bytes = int(seconds * hosts.wire.mbit_per_s * 1e6 / 8)
    answers = run_ranks(hosts, (1, 1), partial(_exchange, hosts, num_bytes))
    possible = hosts.wire.mbit_per_s * hosts.wire.payload_share
    return [
        {
            "host": host,
            "mbit_per_s": answers[host]["mbit_per_s"],
            "possible": possible,
            "ratio": answers[host]["mbit_per_s"] / possible,
            "wire_ratio": answers[1 - host]["wire_bytes"] / num_bytes * hosts.wire.payload_share,
        }
        for host in (0, 1)
    ]


def check(hosts: Hosts) -> list[dict[str, float]]:
    """Says in a line whether the links of a benchmark are what they should be."""
    found = measure(hosts, seconds=0.4)
    rates = " and ".join(f"{row['mbit_per_s']:.1f}" for row in found)
    print(
        f"links of {hosts.wire.mbit_per_s:g} Mbit/s, MTU {hosts.wire.mtu}: a TCP transfer gets "
        f"{rates} of {found[0]['possible']:.1f} Mbit/s",
        flush=True,
    )
    return found


def _exchange(hosts: Hosts, num_bytes: int, seat: Seat) -> dict[str, float]:
    own = seat.env.rank
    with socket.create_server((hosts.address(own), _PORT)) as server:
        # Both listen before either connects.
        seat.barrier.wait(TIMEOUT_S)
        with socket.create_connection((hosts.address(1 - own), _PORT)) as out:
            incoming, _ = server.accept()
            with incoming:
                speeds: list[float] = []
                timing = seat.timed(lambda: speeds.append(_both_ways(out, incoming, num_bytes)))
    return {"mbit_per_s": speeds[0], "wire_bytes": timing["counters"].wire_bytes}


def _both_ways(out: socket.socket, incoming: socket.socket, num_bytes: int) -> float:
    """Sends and receives that many bytes; Mbit/s of what came."""
    # Both ways in one thread: blocking on one would hold up the other.
    out.setblocking(False)
    incoming.setblocking(False)
    left, got = memoryview(bytes(num_bytes)), 0
    buffer = bytearray(1 << 20)
    marks: list[tuple[float, int]] = []
    while left or got < num_bytes:
        try:
            got += incoming.recv_into(buffer)
            marks.append((time.perf_counter(), got))
        except BlockingIOError:
            time.sleep(0.0005)
        if left:
            try:
                left = left[out.send(left) :]
            except BlockingIOError:
                continue
    edges = [
        # Slices of equal bytes; their median leaves out the slow start of TCP and single delays.
        next(m for m in marks if m[1] >= num_bytes * i / _NUM_SLICES)
        for i in range(1, _NUM_SLICES + 1)
    ]
    return median(
        (after - before) * 8 / (end - start) / 1e6
        for (start, before), (end, after) in pairwise(edges)
    )
