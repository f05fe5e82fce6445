"""Pure: what the files of a run folder say about how the run fares."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bundlerun.launcher.run_folder.events import EventName, name_of
from bundlerun.launcher.run_folder.outcome import (
    FAULTS,
    Event,
    Outcome,
    are_together,
    incidents,
    lost_node,
)

Rows = Sequence[Mapping[str, Any]]


def is_fit(row: Mapping[str, Any]) -> bool:
    """Whether a line of the history is one; a crash leaves lines that only look like it."""
    is_whole = isinstance(row.get("step"), int) or row.get("kind") not in ("step", "epoch", "eval")
    return is_whole and isinstance(row.get("time"), (int, float))


_WORDS: Mapping[EventName, str] = {
    "rank gone": "died",
    "rank stopped": "was stopped",
    "rank silent": "was silent",
    "failed": "failed",
}
_STARTS = ("start", "restart")
QUIET_S = 60.0
"""Silence of the history after which a run is not said to be running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One interruption as one node saw it, from its first sign to the next finished step.

    why: what was seen first. phases: seconds from there to each step of the recovery, in order, by
    the clock of the node; over a new start of the machine, by the wall clock. then: in which shape
    it goes on, what of the state came from the memory of which node, and how fast it goes on.
    shape: a new one; else empty.
    """

    node: str
    when: str
    why: str
    phases: Mapping[str, float] = field(default_factory=dict)
    then: str = ""
    shape: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a run fares.

    state: "running", "quiet" (no word for a while), "lost" (gone without an outcome), "done",
    "stopped", "failed" or "not begun".
    step: finished steps. num_steps: of the whole run; None where its history does not say.
    nodes: of the last round, in order.
    quiet_s: seconds since the last word. step_s: median seconds of a step.
    samples_per_s: of the last steps, in `unit`, which is what a sample is called.
    goodput: share of the time since the beginning that went into steps that stay; None before two.
    checkpoint: finished steps in the newest one, None without one. checkpoints: in each, newest
    first. metrics: of the last step. validation: of the last one, with its loss.
    last_events: what happened last at the nodes, oldest first. slow: who holds the others up now,
    with the evidence. short: what is on fewer nodes than asked, or on one machine.
    verify: why replicas are not compared, though they are to be; else empty.
    """

    state: str
    reason: str
    step: int
    epoch: int
    loss: float | None
    round: int
    nodes: tuple[str, ...]
    num_restarts: int
    quiet_s: float | None
    step_s: float | None
    goodput: float | None
    checkpoint: int | None
    failures: tuple[str, ...]
    recoveries: tuple[Recovery, ...]
    num_steps: int | None = None
    samples_per_s: float | None = None
    unit: str = "samples"
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    last_events: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    verify: str = ""


def status_of(
    metrics: Rows,
    events: Rows,
    outcome: Outcome | None,
    *,
    checkpoints: Sequence[int] = (),
    now: float,
    gone: str = "",
    num_failures: int = 5,
    num_events: int = 5,
) -> Status:
    """The status.

    Args:
        metrics: the history. events: of all nodes, by wall clock.
        checkpoints: finished steps in each, newest first.
        now: seconds since the epoch.
        gone: who ran it and is gone without an outcome; empty while somebody runs it.
        num_failures: how many of the last failures to tell. num_events: likewise.
    """
    steps = [row for row in metrics if row.get("kind") == "step"]
    last = steps[-1] if steps else {}
    times = [float(row["time"]) for row in metrics if "time" in row]
    quiet_s = now - times[-1] if times else None
    step_s = _median_step(metrics)
    state, reason = _state(outcome, gone, quiet_s)
    rounds = [row for row in events if name_of(row) == "coordinator: round"]
    start = next((row for row in reversed(metrics) if row.get("kind") == "start"), {})
    evaluated = next((row for row in reversed(metrics) if row.get("kind") == "eval"), {})
    return Status(
        state=state,
        reason=reason,
        step=int(last.get("step", -1)) + 1,
        epoch=int(last.get("epoch", 0)),
        loss=last.get("loss"),
        round=int(rounds[-1]["round"]) if rounds else 0,
        nodes=tuple(rounds[-1]["nodes"]) if rounds else (),
        num_restarts=sum(map(_is_restart, metrics)),
        quiet_s=quiet_s,
        step_s=step_s,
        goodput=_goodput(metrics, step_s),
        checkpoint=checkpoints[0] if checkpoints else None,
        failures=tuple(failure_text(row) for found in incidents(events) for row in found)[
            -num_failures:
        ],
        recoveries=tuple(_paced(r, metrics) for r in recoveries(events)[-num_failures:]),
        num_steps=start.get("steps"),
        samples_per_s=_samples_per_s(metrics),
        unit=str(start.get("unit", "samples")),
        metrics=last.get("metrics") or {},
        validation=_validation(evaluated),
        checkpoints=tuple(checkpoints),
        last_events=tuple(map(event_text, _told(events)))[-num_events:] if num_events else (),
        slow=_slow(events) if state in ("running", "quiet") else (),
        short=_short(events) if state in ("running", "quiet") else (),
        verify=str(start.get("verify", "")),
    )


def _is_restart(row: Mapping[str, Any]) -> bool:
    # Where a node has joined in a hand-over, the others went on.
    return row.get("kind") == "restart" and row.get("source") != "hand-over"


def _state(outcome: Outcome | None, gone: str, quiet_s: float | None) -> tuple[str, str]:
    if outcome is not None:
        return outcome.state, outcome.reason
    if gone:
        return "lost", gone
    if quiet_s is None:
        return "not begun", "no step yet"
    if quiet_s > QUIET_S:
        return "quiet", f"no word for {quiet_s:.0f} s"
    return "running", ""


_ENDS: Mapping[EventName, EventName] = {
    "no slow rank": "slow rank",
    "no bad link": "bad link",
}
"""What says that another event does not hold any more."""


def _slow(events: Rows) -> tuple[str, ...]:
    """What was told of slow members since the ranks met last, and has not been taken back."""
    found: dict[EventName, str] = {}
    for row in events:
        event = name_of(row)
        if event == "met":
            found.clear()
        elif event in _ENDS:
            found.pop(_ENDS[event], None)
        elif event in _ENDS.values():
            found[event] = str(row.get("text", ""))
    return tuple(found.values())


def _short(events: Rows) -> tuple[str, ...]:
    """What was told of copies since the ranks met last, each once."""
    found: dict[str, None] = {}
    for row in events:
        if name_of(row) == "met":
            found.clear()
        elif name_of(row) == "copies short":
            found[str(row.get("text", ""))] = None
    return tuple(found)


def _median_step(metrics: Rows) -> float | None:
    """Median seconds between two steps that follow each other."""
    gaps = [
        float(after["time"]) - float(before["time"])
        for before, after in itertools.pairwise(metrics)
        if before.get("kind") == after.get("kind") == "step"
    ]
    return float(statistics.median(gaps)) if gaps else None


_RECENT = 50
"""Steps whose speed is told."""
_LEAST_STEPS = 5


def _samples_per_s(metrics: Rows) -> float | None:
    """Of the last steps that follow each other, over the time between them."""
    rows = list(itertools.islice(reversed(metrics), _RECENT + 1))[::-1]
    samples = seconds = 0.0
    for before, after in itertools.pairwise(rows):
        if before.get("kind") == after.get("kind") == "step":
            samples += float(after.get("samples", 0))
            seconds += float(after["time"]) - float(before["time"])
    return samples / seconds if samples and seconds > 0 else None


def _validation(row: Mapping[str, Any]) -> Mapping[str, float]:
    loss = row.get("loss")
    return {**(row.get("metrics") or {}), **({"loss": loss} if loss is not None else {})}


_TOLD: Mapping[EventName, str] = {
    "coordinator: round": "round {round}: {nodes}",
    "coordinator: hands over": "{nodes} joins, and the ranks of the others go on",
    "coordinator: holds back": "{why}",
    "cannot hand over": "its ranks begin anew for a node that joins: {why}",
    "coordinator: lost": "{lost} was lost: {why}",
    "coordinator: refuses a node": "a node was refused: {why}",
    "coordinator: fenced": "stopped by the fence",
    "rank gone": "local rank {local_rank} died: {why}",
    "rank stopped": "local rank {local_rank} was stopped: {why}",
    "rank silent": "local rank {local_rank} was silent: {why}",
    "failed": "local rank {local_rank} failed: {text}",
    "corruption": "corrupted: {why}",
    "stood": "the ranks stood: {why}",
    "shares": "{text}",
    "copies short": "{text}",
    "slow rank": "{text}",
    "no slow rank": "{text}",
    "bad link": "{text}",
    "no bad link": "{text}",
    "told to stop": "told to stop",
    "cut off": "cut off: {why}",
    "slurm: signal": "signal of Slurm",
    "slurm: requeues": "Slurm queues the job again",
}
"""What is told of events that a reader should know of."""


class _Known(dict[str, object]):
    """What a line of an event log lacks is left out."""

    def __missing__(self, key: str) -> str:
        return ""


def _told(events: Rows) -> list[Event]:
    # What only follows from another failure is no news.
    return [row for row in events if name_of(row) in _TOLD and not row.get("is_follower")]


def event_text(row: Event) -> str:
    """An event for people, in one line: when, where, what."""
    known = {name: _last_line(value) for name, value in row.items()}
    text = _TOLD.get(name_of(row), name_of(row)).format_map(_Known(known)).rstrip(": ")
    return f"{row.get('wall', '')[:19]}  {row.get('node')}: {text}"


def _last_line(value: object) -> object:
    """Of a text, such as a traceback; of several names, all."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    lines = value.strip().splitlines() if isinstance(value, str) else []
    return lines[-1] if lines else value


def _goodput(metrics: Rows, step_s: float | None) -> float | None:
    """Steps that stay, at their median time, over the time since the run began.

    Validation and checkpoints count as lost, as do starts, failures and what was done again.
    """
    times = [float(row["time"]) for row in metrics if row.get("kind") in (*_STARTS, "step")]
    num_steps = len([row for row in metrics if row.get("kind") == "step"])
    if step_s is None or len(times) < 2 or times[-1] <= times[0]:
        return None
    # The median may be above the mean, and there is one step more than gaps between steps.
    return min(1.0, num_steps * step_s / (times[-1] - times[0]))


def failure_text(row: Event) -> str:
    """A failure for people: when, where, what."""
    lost = lost_node(row)
    if lost:
        return f"{row.get('wall', '')[:19]}  {lost} was lost: {row.get('why')}"
    where = f"{row.get('node')}"
    if "local_rank" in row:
        where += f", local rank {row['local_rank']}"
    lines = str(row.get("text") or row.get("why") or "").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return f"{row.get('wall', '')[:19]}  {where} {_WORDS[name_of(row)]}{said}"


_PHASES: Mapping[EventName, str] = {
    "asks for a round": "workers stopped",
    "in a round": "round",
    "starts": "processes",
    "met": "groups",
    "restored": "state",
    "first step": "first step",
}
_SIGNS: tuple[EventName, ...] = (
    *FAULTS,
    "over",
    "cut off",
    "coordinator: over",
    "coordinator: lost",
)


def _paced(found: Recovery, metrics: Rows) -> Recovery:
    """The same, and at what throughput it goes on in a new shape, where that is known."""
    if not found.shape or not found.when:
        return found
    begin = datetime.fromisoformat(found.when).timestamp()
    end = begin + max(found.phases.values())
    later = (row for row in metrics if float(row.get("time", 0)) >= end)
    after = list(itertools.takewhile(lambda row: row.get("kind") not in _STARTS, later))[:_RECENT]
    was = _samples_per_s([row for row in metrics if float(row.get("time", begin)) < begin])
    now = _samples_per_s(after) if len(after) > _LEAST_STEPS else None
    then = f"{found.then}, at {now / was:.2f} of the throughput" if now and was else found.then
    return replace(found, then=then)


def recoveries(events: Rows) -> list[Recovery]:
    """Every interruption, from its first sign at a node to that node's next finished step."""
    causes = [row for found in incidents(events) for row in found]
    found = []
    own: dict[str, list[Event]] = {}
    for row in events:
        own.setdefault(str(row.get("node")), []).append(row)
    for node, rows in sorted(own.items()):
        found += _of_node(node, rows, causes)
    return sorted(found, key=lambda recovery: recovery.when)


def _of_node(node: str, events: Rows, causes: Rows) -> list[Recovery]:
    found: list[Recovery] = []
    sign: Event | None = None
    phases: dict[str, float] = {}
    shape = then = new = ""
    has_stepped = False
    # By the monotonic clock, which all events of one node share; the wall clock may jump. Where the
    # machine was started again, or another one took the name, that clock began anew.
    boots = list(dict.fromkeys(row.get("boot") for row in events))
    for row in sorted(
        events, key=lambda row: (boots.index(row.get("boot")), float(row.get("t_s", 0.0)))
    ):
        event = name_of(row)
        if sign is None:
            # What happens before the first step is the start, not an interruption.
            has_stepped = has_stepped or event == "first step"
            if has_stepped and (event in _SIGNS or event == "asks for a round"):
                sign, phases, then, new = row, {}, "", ""
        if event == "met" and str(row.get("shape", shape)) != shape:
            shape = new = str(row["shape"])
            then = f"goes on as shape {shape}"
        if event == "restored" and (brought := str(row.get("brought", ""))):
            then = f"{then}, with {brought}" if then else f"with {brought}"
        if sign is None or event not in _PHASES:
            continue
        phases[_PHASES[event]] = round(_between_s(sign, row), 3)
        if event == "first step":
            found.append(
                Recovery(
                    node=node,
                    when=str(sign.get("wall", "")),
                    why=_why(sign, causes),
                    phases=phases,
                    then=then,
                    shape=new,
                )
            )
            sign, has_stepped = None, True
    return found


def _between_s(sign: Event, row: Event) -> float:
    if sign.get("boot") == row.get("boot"):
        return float(row["t_s"]) - float(sign["t_s"])
    before, after = (datetime.fromisoformat(str(each["wall"])) for each in (sign, row))
    return (after - before).total_seconds()


def _why(sign: Event, causes: Rows) -> str:
    """What began an interruption; the first sign at this node is often only a consequence."""
    cause = next((cause for cause in causes if are_together(cause, sign)), None)
    if cause is None:
        return str(sign.get("why") or "its agent was started again")
    lost = lost_node(cause)
    if lost:
        return f"node {lost} was lost"
    where = "" if cause.get("node") == sign.get("node") else f" of node {cause.get('node')}"
    return f"local rank {cause.get('local_rank')}{where} {_WORDS[name_of(cause)]}"
