"""Gantt charts for Perfetto: Chrome's trace events, a process per rank, a thread per lane.

forecast: gpu stage 0           passes; messages; sums of gradients
forecast: gpu stage 1
measured: node-a stage 0 ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bundlerun.launcher.planning.picture.gantt import Gantt, Lane, Role, Who

Event = dict[str, Any]
_US = 1e6
_US_PER_PASS = 1e3
"""A forward of a chart that knows no seconds is shown as a millisecond."""


def trace(gantts: Sequence[Gantt]) -> dict[str, Any]:
    """The document; all charts begin at the same time.

    Args:
        gantts: in the order in which they are shown.
    """
    # The time of the first bar of all is 0: viewers take no time before.
    first_us = min((gantt.begin * _scale(gantt) for gantt in gantts), default=0.0)
    events: list[Event] = []
    pid = 0
    for gantt in gantts:
        for who in gantt.ranks:
            pid += 1
            events += _rank(pid, gantt, who, first_us)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _scale(gantt: Gantt) -> float:
    return _US if gantt.is_in_seconds else _US_PER_PASS


def process_name(gantt: Gantt, who: Who) -> str:
    """Of a rank."""
    parts = [f"{gantt.source.value}:", who.where, who.name]
    if len({each.bundle for each in gantt.ranks}) > 1:
        parts.append(f"bundle {who.bundle}")
    if who.count > 1:
        parts.append(f"x {who.count:,}")
    if not gantt.is_in_seconds:
        parts.append("(1 ms: a forward)")
    return " ".join(filter(None, parts))


def _rank(pid: int, gantt: Gantt, who: Who, first_us: float) -> Iterator[Event]:
    yield _about(pid, 0, "process_name", {"name": process_name(gantt, who)})
    yield _about(pid, 0, "process_sort_index", {"sort_index": pid})
    seen: dict[Role, int] = {}
    for tid, lane in enumerate((lane for lane in gantt.lanes if lane.who == who), 1):
        seen[lane.role] = seen.get(lane.role, 0) + 1
        more = f" {seen[lane.role]}" if seen[lane.role] > 1 else ""
        yield _about(pid, tid, "thread_name", {"name": lane.role.value + more})
        yield _about(pid, tid, "thread_sort_index", {"sort_index": tid})
        yield from _bars(pid, tid, lane, _scale(gantt), first_us)


def _bars(pid: int, tid: int, lane: Lane, scale: float, first_us: float) -> Iterator[Event]:
    for bar in lane.bars:
        args: dict[str, object] = {}
        if bar.microbatch >= 0:
            args |= {"micro-batch": bar.microbatch, "chunk": bar.chunk}
        if bar.num_bytes:
            args["bytes"] = bar.num_bytes
        if bar.is_ahead:
            args["of"] = "the next step"
        yield {
            "ph": "X",
            "cat": bar.kind.value,
            "name": bar.words,
            "pid": pid,
            "tid": tid,
            "ts": bar.begin * scale - first_us,
            "dur": bar.length * scale,
            "args": args,
        }


def _about(pid: int, tid: int, name: str, args: Mapping[str, object]) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": name, "args": dict(args)}
