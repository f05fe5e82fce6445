"""One message between two ranks of a node: shared memory against gloo over loopback.

sender     |send|                    one way: from the call of `send` to the return of `receive`
receiver   |receive  |               of a receiver that waits for it
receiver            (late) |receive| what a receiver that comes later is held for
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch._C._distributed_c10d import FileStore

from benchmarks.results.record import Check, Options, print_table
from bundlerun.workers.pipeline.links import InLink, Kind, OutLink
from bundlerun.workers.rank.comm import Group, Network

CLAIM = "within a node a message of 1 MiB or more comes faster through shared memory than by gloo"
SIZES_KIB = (64, 256, 1024, 2560, 4096, 16384)
NUM_ROUNDS = 30
NUM_WARM_UP = 3
TIMEOUT_S = 60.0
LATE_S = 0.03
"""How much later the receiver comes: anything has arrived by then."""
TRANSPORTS = ("memory", "gloo")
MOST_OF_GLOO = 0.8
_SENDER, _RECEIVER = 0, 1
_TIMES = struct.Struct("dd")

Case = tuple[int, str]
"""KiB and transport."""


@dataclass(slots=True)
class Found:
    """Microseconds of one case."""

    one_way: list[float] = field(default_factory=list)
    send: list[float] = field(default_factory=list)
    late_receive: list[float] = field(default_factory=list)


def run(options: Options) -> None:
    """Measures all sizes, with the transports in turn."""
    torch.set_num_threads(1)
    rounds = options.rounds_or(NUM_ROUNDS)
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        found = measure(Path(folder), rounds)
    rows, results = [], []
    for (kib, transport), times in found.items():
        row = (median(times.one_way), median(times.send), median(times.late_receive))
        rows.append((f"{kib} KiB, {transport}", *row))
        names = ("one_way_us", "send_us", "late_receive_us")
        results.append({"kib": kib, "transport": transport, **dict(zip(names, row, strict=True))})
    print_table(("message", "one way us", "send holds us", "late receive holds us"), rows)
    checks = [
        Check(
            f"one way, {kib} KiB, shared memory over gloo at most", ratio(found, kib), MOST_OF_GLOO
        )
        for kib in SIZES_KIB
        if kib >= 1024
    ]
    options.record(
        "links", {"unit": "us", "rounds": rounds, "threads": 1, "cases": results}, checks
    )


def ratio(found: dict[Case, Found], kib: int) -> float:
    """One-way time through memory over that by gloo."""
    memory, gloo = (median(found[kib, transport].one_way) for transport in TRANSPORTS)
    return memory / gloo


def measure(folder: Path, rounds: int) -> dict[Case, Found]:
    """Forks the receiver and sends to it."""
    answers, answer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            receive_all(folder, rounds, answer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(answer)
    try:
        return send_all(folder, rounds, answers)
    finally:
        os.close(answers)
        os.waitpid(pid, 0)


def cases(rounds: int) -> list[tuple[Case, bool, bool]]:
    """What is sent, in order: the case, whether the receiver is late, whether it counts."""
    return [
        ((kib, transport), is_late, number >= NUM_WARM_UP)
        for kib in SIZES_KIB
        for number in range(NUM_WARM_UP + rounds)
        for is_late in (False, True)
        for transport in TRANSPORTS
    ]


def groups(folder: Path, rank: int) -> dict[str, Group]:
    """A group per transport; collective."""
    network = Network(
        store=FileStore(str(folder / "store"), 2),
        rank=rank,
        backend="gloo",
        timeout_s=TIMEOUT_S,
        address="127.0.0.1",
    )
    return {
        name: Group(network, name, (_SENDER, _RECEIVER), "gloo", is_one_node=name == "memory")
        for name in TRANSPORTS
    }


def kind_of(kib: int) -> Kind:
    """A kind per size."""
    return Kind(training=True, num_samples=kib)


def send_all(folder: Path, rounds: int, answers: int) -> dict[Case, Found]:
    """The sender: what it measured, with what the receiver answers."""
    links = {
        name: OutLink(group, tells_specs=True) for name, group in groups(folder, _SENDER).items()
    }
    messages = {kib: torch.ones(kib << 10, dtype=torch.uint8) for kib in SIZES_KIB}
    found: dict[Case, Found] = {}
    for case, is_late, counts in cases(rounds):
        kib, transport = case
        read(answers)  # the receiver is ready
        start = time.perf_counter()
        links[transport].send(kind_of(kib), [messages[kib]])
        sent = time.perf_counter()
        # Both processes read one monotonic clock, so that their times can be subtracted.
        called, returned = read(answers)
        if not counts:
            continue
        times = found.setdefault(case, Found())
        times.send.append(1e6 * (sent - start))
        # The message is there when it is asked for: what then takes time is taking it over.
        if is_late:
            times.late_receive.append(1e6 * (returned - called))
        else:
            times.one_way.append(1e6 * (returned - start))
    for link in links.values():
        link.finish()
    return found


def receive_all(folder: Path, rounds: int, answer: int) -> None:
    """The receiver: answers when it called `receive` and when that returned."""
    links = {
        name: InLink(group, torch.device("cpu"), is_told_specs=True)
        for name, group in groups(folder, _RECEIVER).items()
    }
    for (kib, transport), is_late, _ in cases(rounds):
        links[transport].expect([kind_of(kib)])
        # Ready: without this, the sender could measure the receiver's delay.
        os.write(answer, _TIMES.pack(0, 0))
        if is_late:
            time.sleep(LATE_S)
        called = time.perf_counter()
        links[transport].receive()
        os.write(answer, _TIMES.pack(called, time.perf_counter()))


def read(answers: int) -> tuple[float, float]:
    """The receiver's next answer."""
    data = os.read(answers, _TIMES.size)
    if not data:
        raise RuntimeError("the receiver is gone")
    called, returned = _TIMES.unpack(data)
    return called, returned
