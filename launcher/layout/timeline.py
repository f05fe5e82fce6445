"""The time and memory that a schedule takes, worked out without running it.

1f1b, shape 1,1, two micro-batches, a forward takes 1 and a backward 2

0.0  F0 F1       B0 --    B1 --
1.0     F0 B0 -- F1 B1 --
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.schedule import Action, Pass, Schedule

Position = tuple[int, int]
"""(stage, replica)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What passes and transfers take, any unit, per chunk of the model.

    Args:
        forward: time of a forward.
        backward: time of a whole backward.
        weight: the part of it that a weight pass can take over; empty: half of it.
        transfer: time on the link to the next chunk, and back; empty: none. Messages of one link
            follow each other; the two directions do not slow each other.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    weight: Sequence[float] = ()
    transfer: Sequence[float] = ()

    @classmethod
    def equal(cls, num_chunks: int, forward: float = 1.0, backward: float = 2.0) -> Costs:
        """All chunks take the same, a weight pass half of the backward, transfers nothing."""
        return cls(forward=[forward] * num_chunks, backward=[backward] * num_chunks)

    def of(self, action: Action, chunk: int, is_split: bool) -> float:
        """Time of one action on `chunk` of the model, whose backward is in two passes or one."""
        if action.kind is Pass.FORWARD:
            return self.forward[chunk]
        weight = self.weight[chunk] if self.weight else self.backward[chunk] / 2
        if action.kind is Pass.WEIGHT:
            return weight
        return self.backward[chunk] - weight if is_split else self.backward[chunk]

    def on_link(self, chunk: int) -> float:
        """Time between `chunk` and the next one."""
        return self.transfer[chunk] if self.transfer else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """One action in time."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A simulated step."""

    duration: float
    bubble: float
    """Time that the busiest rank idles, over the time it works: 0 is a full pipeline."""
    in_flight: dict[Position, int]
    """Per rank, the most micro-batches (times chunks) whose activations it holds at once."""
    spans: dict[Position, list[Span]]


def simulate(schedule: Schedule, costs: Costs, *, capacity: int | None = None) -> Timeline | None:
    """Runs `schedule`; None if it would wait for ever.

    Args:
        schedule: the order of each rank of a bundle.
        costs: times.
        capacity: messages that a link holds before the sender has to wait for the receiver to
            take one; None: any number.
    """
    simulation = _Simulation(schedule, costs, capacity)
    # A list: `any` on a generator would stop at the first rank that advances.
    while any([simulation.advance(position) for position in schedule]):
        pass
    return simulation.timeline()


@dataclass(slots=True)
class _Link:
    """Messages between two ranks for one chunk and direction."""

    is_free_at: float = 0.0
    num_sent: int = 0
    taken: list[float] = field(default_factory=list)


class _Simulation:
    def __init__(self, schedule: Schedule, costs: Costs, capacity: int | None) -> None:
        self._schedule = schedule
        self._costs = costs
        self._capacity = capacity
        self._widths = [
            1 + max(r for s, r in schedule if s == stage)
            for stage in range(1 + max(s for s, _ in schedule))
        ]
        num_stages = len(self._widths)
        self._chunks = Chunks(num_stages, len(costs.forward) // num_stages)
        self._last = len(costs.forward) - 1
        # Passes whose weights' part comes later: their backward is shorter.
        self._split = {
            (a.microbatch, self._chunk(stage, a))
            for (stage, _), order in schedule.items()
            for a in order
            if a.kind is Pass.WEIGHT
        }
        self._done: dict[tuple[Pass, int, int], float] = {}
        self._arrived: dict[tuple[Pass, int, int], float] = {}
        self._links: dict[tuple[Pass, int, int, int], _Link] = {}
        self._spans: dict[Position, list[Span]] = {position: [] for position in schedule}

    def _chunk(self, stage: int, action: Action) -> int:
        return self._chunks.number(stage, action.chunk)

    def advance(self, position: Position) -> bool:
        """Does all that one rank can do now; returns whether that was anything."""
        order, spans = self._schedule[position], self._spans[position]
        before = len(spans)
        while len(spans) < len(order):
            action = order[len(spans)]
            ready = self._ready_at(position, action)
            if ready is None:
                break
            start = max(ready, spans[-1].end if spans else 0.0)
            chunk = self._chunk(position[0], action)
            is_split = (action.microbatch, chunk) in self._split
            end = start + self._costs.of(action, chunk, is_split)
            spans.append(Span(action, start, end))
            self._finish(position[0], action, start, end)
        return len(spans) > before

    def _link(self, kind: Pass, microbatch: int, chunk: int) -> _Link:
        """The link on which a chunk's output, or its input's gradient, leaves."""
        there = chunk + 1 if kind is Pass.FORWARD else chunk - 1
        src, dst = (microbatch % self._widths[self._chunks.stage_of(c)] for c in (chunk, there))
        return self._links.setdefault((kind, chunk, src, dst), _Link())

    def _sends(self, action: Action, chunk: int) -> bool:
        if action.kind is Pass.FORWARD:
            return chunk < self._last
        return action.kind is Pass.BACKWARD and chunk > 0

    def _received(self, action: Action, chunk: int) -> tuple[Pass, int, int] | None:
        """The message that an action takes from a link."""
        if action.kind is Pass.FORWARD and chunk > 0:
            return Pass.FORWARD, action.microbatch, chunk - 1
        if action.kind is Pass.BACKWARD and chunk < self._last:
            return Pass.BACKWARD, action.microbatch, chunk + 1
        return None

    def _ready_at(self, position: Position, action: Action) -> float | None:
        """When an action can start; None while that is not known."""
        chunk = self._chunk(position[0], action)
        needs: list[float | None] = [0.0]
        # A pass needs the one before it on the same chunk, and what a neighbour sends.
        before = {Pass.BACKWARD: Pass.FORWARD, Pass.WEIGHT: Pass.BACKWARD}.get(action.kind)
        if before is not None:
            needs.append(self._done.get((before, action.microbatch, chunk)))
        message = self._received(action, chunk)
        if message is not None:
            needs.append(self._arrived.get(message))
        if self._capacity is not None and self._sends(action, chunk):
            link = self._link(action.kind, action.microbatch, chunk)
            # The link is full until the message `capacity` places ahead of this one is taken.
            ahead = link.num_sent - self._capacity
            if ahead >= 0:
                needs.append(link.taken[ahead] if ahead < len(link.taken) else None)
        # None for something that has not happened yet: the rank has to wait for another one.
        known = [need for need in needs if need is not None]
        return max(known) if len(known) == len(needs) else None

    def _finish(self, stage: int, action: Action, start: float, end: float) -> None:
        chunk = self._chunk(stage, action)
        key = action.kind, action.microbatch, chunk
        self._done[key] = end
        message = self._received(action, chunk)
        if message is not None:
            # Taken at the start, not the end: a place on the link is free from then on.
            self._link(*message).taken.append(start)
        if self._sends(action, chunk):
            link = self._link(*key)
            cost = self._costs.on_link(chunk if action.kind is Pass.FORWARD else chunk - 1)
            # Messages of one link follow each other.
            link.is_free_at = max(link.is_free_at, end) + cost
            link.num_sent += 1
            self._arrived[key] = link.is_free_at

    def timeline(self) -> Timeline | None:
        """The result; None if a rank did not reach its end."""
        if any(len(self._spans[p]) < len(order) for p, order in self._schedule.items()):
            return None
        duration = max((spans[-1].end for spans in self._spans.values() if spans), default=0.0)
        busiest = max(sum(s.end - s.start for s in spans) for spans in self._spans.values())
        return Timeline(
            duration=duration,
            bubble=duration / busiest - 1 if busiest else 0.0,
            in_flight={p: max_in_flight(order) for p, order in self._schedule.items()},
            spans=self._spans,
        )


def max_in_flight(order: Sequence[Action]) -> int:
    """The most micro-batches, times chunks, whose activations a rank holds at once."""
    last = {action.key: index for index, action in enumerate(order)}
    count = most = 0
    for index, action in enumerate(order):
        count += action.kind is Pass.FORWARD
        most = max(most, count)
        # Activations are held until the last pass that needs them.
        count -= last[action.key] == index
    return most


def drawn(timeline: Timeline, *, unit: float = 1.0) -> Iterator[str]:
    """Yields one line per rank: a column per `unit` of time, `--` where an action continues."""
    spans = [span for rank in timeline.spans.values() for span in rank]
    width = max((len(str(span.action)) for span in spans), default=0)
    for (stage, replica), rank in timeline.spans.items():
        cells = [" " * width] * round(timeline.duration / unit)
        for span in rank:
            first, end = round(span.start / unit), round(span.end / unit)
            cells[first:end] = [str(span.action).ljust(width, " ")] + [
                "-" * width for _ in range(first + 1, end)
            ]
        yield f"{stage}.{replica}  {' '.join(cells)}".rstrip()
