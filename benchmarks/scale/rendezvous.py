"""The rendezvous with thousands of nodes on one machine: rounds, heartbeats, what they take."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.results.record import Check, Options, print_table
from benchmarks.scale.parts import Size, be_nodes, coordinate
from benchmarks.scale.process import Helper, Silent

CLAIM = "thousands of nodes meet within seconds, and their heartbeats leave the coordinator time"
SIZES = {10: 0.3, 100: 0.3, 1000: 1.0, 5000: 6.0}
"""Nodes -> seconds between heartbeats, so that what a coordinator hears in a second grows less."""
LEASE_BEATS = 10
PROCESSES = 2
"""That have nodes; one more has the coordinator."""
ROUND_LIMIT_S = 300.0
STEADY_BEATS = 6
ROUND_S, SHARE = 10.0, 0.5
"""Targets of the largest: seconds of a round after a failure; of a core, in heartbeats."""
_SPARE_FILES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured of one size; seconds, bytes of all nodes together.

    Args:
        first_s: from the first connection until the last node is in the first round.
        next_s: from the death of a node until the last one is in the next round.
        core_share: of a core, that the coordinator takes for heartbeats.
        up_bytes, down_bytes: that a node sends and gets in a heartbeat.
        first_cpu_s, next_cpu_s: of the coordinator, for the two rounds.
        first_bytes, next_bytes: that all nodes got in the two rounds.
        memory_mib: of the coordinator, at most.
        lost: nodes that it lost, the one that died included.
    """

    nodes: int
    heartbeat_s: float
    first_s: float
    next_s: float
    core_share: float
    up_bytes: float
    down_bytes: float
    first_cpu_s: float
    next_cpu_s: float
    first_bytes: int
    next_bytes: int
    memory_mib: float
    lost: int


def skip_reason() -> str:
    """Why it cannot run here; empty where it can."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = max(SIZES) + _SPARE_FILES
    return (
        f"this machine gives a process {most} open files, {need} are needed" if most < need else ""
    )


def run(options: Options) -> None:
    """Each size by itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found = []
    for nodes, heartbeat_s in SIZES.items():
        if options.only and str(nodes) not in options.only:
            continue
        lease_s = LEASE_BEATS * heartbeat_s
        try:
            found.append(measure(Size(nodes=nodes, heartbeat_s=heartbeat_s, lease_s=lease_s)))
            print(found[-1], flush=True)
        except Silent as exc:
            print(f"{nodes} nodes: {exc}", flush=True)
    _report(options, found)


def measure(size: Size) -> Found:
    """Two rounds, and heartbeats between.

    Raises:
        Silent: a round was not there within its limit.
    """
    with ExitStack() as stack:
        coordinator = stack.enter_context(Helper(coordinate, size))
        port = coordinator.answer()
        parts = min(PROCESSES, size.nodes)
        groups = [
            stack.enter_context(Helper(be_nodes, port, range(part, size.nodes, parts), size))
            for part in range(parts)
        ]
        for group in groups:
            group.ask("used")  # they have loaded what they need
        cpu_0, _, _ = coordinator.ask("used")
        begin = time.monotonic()
        for group in groups:
            group.ask("come")
        number, first_at = _wait(groups, 0)
        cpu_1, _, _ = coordinator.ask("used")
        down_1 = sum(group.ask("used")[3] for group in groups)
        time.sleep(2 * size.heartbeat_s)
        before = coordinator.ask("used"), [group.ask("used") for group in groups], time.monotonic()
        time.sleep(STEADY_BEATS * size.heartbeat_s)
        after = coordinator.ask("used"), [group.ask("used") for group in groups], time.monotonic()
        passed_s = after[2] - before[2]
        beats = passed_s / size.heartbeat_s * size.nodes
        up, down = (
            sum(b[field] - a[field] for a, b in zip(before[1], after[1], strict=True)) / beats
            for field in (2, 3)
        )
        cpu_2, _, _ = coordinator.ask("used")
        died_at = groups[-1].ask("die", size.nodes - 1)
        number, next_at = _wait(groups, number)
        cpu_3, memory_mib, counts = coordinator.ask("used")
        down_3 = sum(group.ask("used")[3] for group in groups)
        down_2 = sum(each[3] for each in after[1])
    return Found(
        nodes=size.nodes,
        heartbeat_s=size.heartbeat_s,
        first_s=first_at - begin,
        next_s=next_at - died_at,
        core_share=(after[0][0] - before[0][0]) / passed_s,
        up_bytes=up,
        down_bytes=down,
        first_cpu_s=cpu_1 - cpu_0,
        next_cpu_s=cpu_3 - cpu_2,
        first_bytes=down_1,
        next_bytes=down_3 - down_2,
        memory_mib=memory_mib,
        lost=counts.get("coordinator: lost", 0),
    )


def _wait(groups: list[Helper], after: int) -> tuple[int, float]:
    """Number of the round that all are in, and when the last one was."""
    for group in groups:
        group.send("entered", after, ROUND_LIMIT_S)
    answers = [group.answer(ROUND_LIMIT_S + 30) for group in groups]
    least = min(answer[0] for answer in answers)
    if least <= after:
        raise Silent(f"no round of all nodes within {ROUND_LIMIT_S:g} s")
    return max(answer[1] for answer in answers), max(answer[2] for answer in answers)


def _report(options: Options, found: list[Found]) -> None:
    if not found:
        return
    head = [
        "nodes", "first round s", "its CPU s", "MB", "next round s", "its CPU s", "MB",
        "heartbeats, of a core", "bytes up", "down", "MiB", "lost",
    ]  # fmt: skip
    rows = [
        [
            each.nodes, each.first_s, each.first_cpu_s, each.first_bytes / 1e6, each.next_s,
            each.next_cpu_s, each.next_bytes / 1e6, each.core_share, each.up_bytes,
            each.down_bytes, each.memory_mib, each.lost,
        ]
        for each in found
    ]  # fmt: skip
    print_table(head, rows)
    largest = found[-1]
    checks = [
        Check(
            f"{largest.nodes} nodes, seconds to the next round, at most", largest.next_s, ROUND_S
        ),
        Check(f"{largest.nodes} nodes, share of a core, at most", largest.core_share, SHARE),
    ]
    fields = Found.__dataclass_fields__
    document = [{name: getattr(each, name) for name in fields} for each in found]
    options.record("rendezvous", {"sizes": document}, checks)
