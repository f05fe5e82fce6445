"""Messages from rank to rank on one GPU, two ahead, every number of them looked at.

    one node    through memory of the CPU that both ranks map and the GPU reaches
    ipc         through memory of the GPU that both ranks map
    gloo        through pinned memory and a socket

The receiver times them, from the first to the last. Two processes take turns on one GPU, so nothing
is computed meanwhile: messages are made before and looked at after. What is computed beside them in
the end says less than it would on two.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cluster.forked import Seat
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases.ceilings import gb_per_s
from benchmarks.gpu.forked import LIMIT_S, in_fork
from benchmarks.gpu.ranks import network, run_ranks
from bundlerun.workers.device import accelerator
from bundlerun.workers.pipeline.links import InLink, Kind, OutLink
from bundlerun.workers.rank.comm import Group

_CARRIERS = ("one node", "ipc", "gloo")
_SENDS = {"one node": "StagedSender", "ipc": "DeviceSlotSender", "gloo": "StagedSender"}
"""The class of what sends."""
_LEAST_SHARE = 0.6
_MIB = 1 << 20
_SIDE = 4096
_SENDER = 0
_WARM_UP = 10
"""Messages until both ends have the memory that they will need."""


def run(bench: Bench) -> None:
    """What the GPU can copy first, then each carrier."""
    bus, inside = in_fork(partial(_copies_gb_per_s, bench))
    sizes = bench.sized((4, 25, 51), (1,))
    for carrier in _CARRIERS:
        main = partial(_rank, bench, sizes, carrier)
        sender, receiver = run_ranks(bench, f"hop-{carrier}", 2, main)
        sends, wanted = sender["sends"], _SENDS[carrier]
        bench.said.holds(f"{carrier}: carried by", sends == wanted, sends, wanted)
        for mib, out, found in zip(sizes, sender["sizes"], receiver["sizes"], strict=True):
            what = f"{carrier}, {mib} MiB"
            bench.said.holds(f"{what}: content", found["is_right"], found["content"], "as sent")
            if carrier == "one node" and mib == sizes[-1]:
                share = found["gb_per_s"] / bus
                bench.on_gpu.at_least(f"{what}: of the slower way of the bus", share, _LEAST_SHARE)
            if carrier == "ipc" and mib == sizes[-1]:
                share = found["gb_per_s"] / inside
                bench.on_gpu.figure(f"{what}: of a copy inside the GPU", share)
            bench.on_gpu.figure(what, found["gb_per_s"], "GB/s")
            bench.on_gpu.figure(f"{what}: processor", out["cpu_s"] + found["cpu_s"], "s per GB")
        bench.on_gpu.figure(
            f"{carrier}: matrix products beside it take", 100 * sender["slower"], "% longer"
        )


def _copies_gb_per_s(bench: Bench) -> tuple[float, float]:
    """The slower direction between the GPU and pinned memory; inside the GPU."""
    there = torch.ones(bench.sized(64, 1) * _MIB, dtype=torch.uint8, device=bench.device)
    here = torch.ones(there.numel(), dtype=torch.uint8, pin_memory=bench.is_gpu)
    bus = min(gb_per_s(bench, there, here), gb_per_s(bench, here, there))
    return bus, gb_per_s(bench, there, torch.ones_like(there))


def _rank(bench: Bench, sizes: Sequence[int], carrier: str, seat: Seat) -> dict[str, Any]:
    reach = network(seat, "gloo", tries_ipc=carrier == "ipc")
    group = Group(reach, "hop", (0, 1), "gloo", is_one_node=carrier != "gloo")
    count = bench.sized(50, 6)
    if seat.env.rank == _SENDER:
        answer = _send_all(bench, OutLink(group, tells_specs=True), seat, sizes, count)
    else:
        link = InLink(group, bench.device, is_told_specs=True)
        answer = {"sizes": [_receive(bench, link, seat, mib, count) for mib in sizes]}
        # Those of the last size again, beside which the sender computes.
        _receive(bench, link, seat, sizes[-1], count)
    group.close()
    return answer


def _send_all(
    bench: Bench, link: OutLink, seat: Seat, sizes: Sequence[int], count: int
) -> dict[str, Any]:
    found = []
    for mib in sizes:
        messages = _messages(bench, mib, count)
        seat.barrier.wait(LIMIT_S)
        start = _cpu_s()
        _send(link, mib, messages)
        link.finish()
        found.append({"cpu_s": (_cpu_s() - start) / _gb(mib, count)})
    side = bench.sized(_SIDE, 64)
    matrix = torch.ones(side, side, device=bench.device, dtype=torch.bfloat16)
    alone = median(bench.ms(lambda: matrix @ matrix) for _ in range(count))
    messages = _messages(bench, sizes[-1], count)
    seat.barrier.wait(LIMIT_S)
    _send(link, sizes[-1], messages)
    beside = median(bench.ms(lambda: matrix @ matrix) for _ in range(count))
    link.finish()
    sends = type(getattr(link, "_sender", link)).__name__
    return {"sizes": found, "slower": beside / alone - 1, "sends": sends}


def _messages(bench: Bench, mib: int, count: int) -> list[Tensor]:
    """Messages that are all there, each with a number of its own."""
    size = mib * _MIB // 4
    made = [torch.full((size,), float(number), device=bench.device) for number in range(count)]
    bench.drain()
    return made


def _send(link: OutLink, mib: int, messages: Sequence[Tensor]) -> None:
    for message in messages:
        link.send(Kind(True, mib), [message])


def _receive(bench: Bench, link: InLink, seat: Seat, mib: int, count: int) -> dict[str, Any]:
    link.expect([Kind(True, mib)] * count)
    found = []
    # Else the driver would be asked for the memory of each message that is kept.
    with accelerator.on_stream(bench.device, "copy in"):
        held = [
            torch.empty(mib * _MIB, dtype=torch.uint8, device=bench.device) for _ in range(count)
        ]
    del held
    seat.barrier.wait(LIMIT_S)
    start_s = start_cpu_s = 0.0
    warm_up = min(_WARM_UP, count - 1)
    for number in range(count):
        found += link.receive()
        if number == warm_up - 1:
            accelerator.drain(bench.device)
            start_s, start_cpu_s = time.perf_counter(), _cpu_s()
    accelerator.drain(bench.device)
    took_s, cpu_s, gb = (
        time.perf_counter() - start_s,
        _cpu_s() - start_cpu_s,
        _gb(mib, count - warm_up),
    )
    num_wrong = sum(int((t != float(number)).sum()) for number, t in enumerate(found))
    return {
        "gb_per_s": gb / took_s,
        "cpu_s": cpu_s / gb,
        "is_right": num_wrong == 0,
        "content": f"{num_wrong} numbers are wrong" if num_wrong else "as sent",
    }


def _gb(mib: int, count: int) -> float:
    return mib * _MIB * count / 1e9


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
