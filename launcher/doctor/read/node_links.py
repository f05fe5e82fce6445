"""How fast bytes go from one process of this node to another, and what that costs a core.

sender     copies a message into memory that both map, and rings
receiver   finds it there, and rings back

So do the links of ranks on the CPU (`bundlerun.workers.pipeline.slots`). Without torch.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from dataclasses import dataclass

MESSAGE_BYTES = 16 << 20
"""More than a cache of one core has."""
_NUM_MESSAGES, _NUM_SMALL = 16, 300
_SENT_BYTES = 64 << 20
_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLinks:
    """What was found.

    bytes_per_s, latency_s: of a message between two processes.
    copy_s_per_byte: seconds of a core for a copy. send_s_per_byte: to hand a byte to TCP.
    """

    bytes_per_s: float
    latency_s: float
    copy_s_per_byte: float
    send_s_per_byte: float


def read_node_links() -> NodeLinks:
    """Measures it, in about a second; the least of many counts, as other work only adds to it.

    Forks: to be called before there are threads.

    Raises:
        OSError: the system gives no memory or no process for it.
    """
    memory = mmap.mmap(-1, MESSAGE_BYTES)  # shared with a child that is forked
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ours.close()
            _echo(theirs)
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    try:
        ours.settimeout(_LIMIT_S)
        data = bytes(MESSAGE_BYTES)
        with memoryview(memory) as slot:
            latency_s = _least_round(ours, slot, data[:64]) / 2
            copy_s = _least_copy(slot, data)
    finally:
        ours.close()  # so the child ends
        os.waitpid(child, 0)
        memory.close()
    return NodeLinks(
        # The receiver reads in place. By the processor's time, of which others take nothing.
        bytes_per_s=MESSAGE_BYTES / copy_s,
        latency_s=latency_s,
        copy_s_per_byte=copy_s / MESSAGE_BYTES,
        send_s_per_byte=_send_cost(),
    )


def _echo(sock: socket.socket) -> None:
    while bell := sock.recv(1):
        sock.sendall(bell)


def _least_round(sock: socket.socket, slot: memoryview, data: bytes) -> float:
    least = float("inf")
    for _ in range(_NUM_SMALL):
        start = time.perf_counter()
        slot[: len(data)] = data
        sock.sendall(b"b")
        sock.recv(1)
        least = min(least, time.perf_counter() - start)
    return least


def _least_copy(slot: memoryview, data: bytes) -> float:
    least = float("inf")
    for _ in range(_NUM_MESSAGES):
        start = time.thread_time()
        slot[:] = data
        least = min(least, time.thread_time() - start)
    return max(least, 1e-9)


def _send_cost() -> float:
    """Seconds of the processor to send a byte by TCP, on the way that needs no card."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = socket.create_connection(server.getsockname())
        target, _ = server.accept()
    drain = threading.Thread(target=_drain, args=(target,), daemon=True)
    drain.start()
    data = bytes(1 << 20)
    with source:
        source.settimeout(_LIMIT_S)
        start = time.thread_time()
        for _ in range(_SENT_BYTES // len(data)):
            source.sendall(data)
        spent = time.thread_time() - start
    drain.join(_LIMIT_S)
    return spent / _SENT_BYTES


def _drain(sock: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    with sock:
        while sock.recv_into(buffer):
            pass
