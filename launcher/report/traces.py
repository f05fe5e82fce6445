"""Pure: the profiles of several ranks as one timeline that Perfetto shows.

Each rank's profile has the wall clock of its machine, in microseconds after a time of its own. What
these clocks differ by is found from the steps that were measured meanwhile (`clocks.py`).

    node0 stage 0 bundle 0        operations by thread; what this rank did, by phase
    node0 stage 0 bundle 0 GPU    kernels by stream
    node1 stage 1 bundle 1 ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundlerun.launcher.report.clocks import on_one_clock
from bundlerun.launcher.run_folder.measured import MeasuredRank

Event = dict[str, Any]
_OURS = 1_000_000
"""The first number of the threads that stand for phases: above all that Linux gives."""
_DROPPED = frozenset({"process_name", "process_labels", "process_sort_index"})
_MOST_LANES = 100


@dataclass(frozen=True, slots=True)
class RankTrace:
    """What one rank has profiled.

    Args:
        steps: as it has measured them, one at least.
        trace: what torch's profiler wrote.
    """

    steps: Sequence[MeasuredRank]
    trace: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its process in the timeline."""
        rank = self.steps[0]
        replica = f" replica {rank.replica}" if rank.replica else ""
        return f"{rank.node} stage {rank.stage} bundle {rank.bundle}{replica}"


def timeline(ranks: Sequence[RankTrace]) -> dict[str, Any]:
    """All ranks on the clock of the first one's machine; times begin with the first step."""
    moved = on_one_clock([rank.steps[0] for rank in ranks])
    events: list[Event] = []
    for number, (rank, at) in enumerate(zip(ranks, moved, strict=True)):
        # From the monotonic clock of its machine to the common one, seconds.
        shift_s = at.spans[0].begin_s - rank.steps[0].spans[0].begin_s
        events += _operations(number, rank, shift_s)
        events += _phases(number, rank, shift_s)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _operations(number: int, rank: RankTrace, shift_s: float) -> Iterator[Event]:
    """What torch saw, in processes of this rank's own."""
    # The wall clock less the monotonic one is what the rank knew; the rest is the common shift.
    origin_s = rank.trace.get("baseTimeNanoseconds", 0) / 1e9 - rank.steps[0].wall_s + shift_s
    host = _host(rank)
    seen: set[int] = set()
    for event in rank.trace["traceEvents"]:
        pid = event.get("pid")
        # Its spans of the whole profile, and marks for other viewers, have a text there.
        if not isinstance(pid, int) or event.get("name") in _DROPPED:
            continue
        lane = 0 if pid == host else 1 + pid % (_MOST_LANES - 1)
        if lane not in seen:
            seen.add(lane)
            yield from _process(number, lane, rank.name + (" GPU" if lane else ""))
        moved = {**event, "pid": number * _MOST_LANES + lane + 1}
        if "ts" in event:
            moved["ts"] = origin_s * 1e6 + event["ts"]
        if "id" in event:  # of arrows, which go within a rank
            moved["id"] = f"{number}-{event['id']}"
        yield moved


def _host(rank: RankTrace) -> int | None:
    """The process of the rank itself: of what runs on the processor."""
    events = rank.trace["traceEvents"]
    kinds = ("cpu_op", "user_annotation", "cuda_runtime", "python_function")
    return next((e["pid"] for e in events if e.get("cat") in kinds), None)


def _phases(number: int, rank: RankTrace, shift_s: float) -> Iterator[Event]:
    """What the rank did, as its meters say, a line per phase: legs of a sync overlap."""
    yield from _process(number, 0, rank.name)
    pid = number * _MOST_LANES + 1
    lanes: dict[str, int] = {}
    for step in rank.steps:
        for span in step.spans:
            if span.phase not in lanes:
                lanes[span.phase] = _OURS + len(lanes)
                named = {"name": f"bundlerun: {span.phase}"}
                yield _about(pid, lanes[span.phase], "thread_name", named)
                order = {"sort_index": len(lanes) - _OURS}
                yield _about(pid, lanes[span.phase], "thread_sort_index", order)
            yield {
                "ph": "X",
                "cat": "bundlerun",
                "name": f"{span.phase} {span.action}".rstrip(),
                "pid": pid,
                "tid": lanes[span.phase],
                "ts": (span.begin_s + shift_s) * 1e6,
                "dur": (span.end_s - span.begin_s) * 1e6,
                "args": {"step": step.step + 1 + span.ahead},
            }


def _process(number: int, lane: int, name: str) -> Iterator[Event]:
    pid = number * _MOST_LANES + lane + 1
    yield _about(pid, 0, "process_name", {"name": name})
    yield _about(pid, 0, "process_sort_index", {"sort_index": pid})


def _about(pid: int, tid: int, name: str, args: Mapping[str, object]) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": name, "args": dict(args)}
