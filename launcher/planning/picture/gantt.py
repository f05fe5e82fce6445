"""A step in time: lanes of bars, whether foreseen, measured, or by the order of passes alone.

stage 0   passes     F0 F1 F2 B0    B1    B2 -- optimizer
          messages     -- -- --
          sums                       ==== ====
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from bundlerun.launcher.layout.schedule import Action, Pass, Pipeline
from bundlerun.launcher.layout.timeline import Costs, Position, Timeline, simulate

_ROUNDING = 1e-9
"""Of a time: two bars that overlap by no more follow each other."""
MOST_MICROBATCHES = 96
"""Of a bundle, that are shown; of more nobody could tell one from the next."""


class Kind(Enum):
    """What a bar stands for; the value is for people."""

    FORWARD = "forward"
    BACKWARD = "backward"
    WEIGHT = "weight pass"
    HANDOVER = "hands a message over"
    MESSAGE = "message"
    COLLECT = "collect"
    EXCHANGE = "exchange"
    DISTRIBUTE = "distribute"
    UPDATE = "optimizer"
    WAIT = "waits"
    OTHER = "other"


KIND_OF_PASS = {
    Pass.FORWARD: Kind.FORWARD,
    Pass.BACKWARD: Kind.BACKWARD,
    Pass.WEIGHT: Kind.WEIGHT,
}
_LETTERS = {kind: each.value for each, kind in KIND_OF_PASS.items()}


class Role(Enum):
    """What a lane has; the value is for people."""

    PASSES = "passes"
    MESSAGES = "messages"
    SUMS = "sums of gradients"
    BEHIND = "behind"


class Bar(NamedTuple):
    """Something that takes time."""

    begin: float
    end: float
    kind: Kind
    microbatch: int = -1
    """Counts inside the bundle; -1: of none."""
    chunk: int = 0
    """Counts the chunks of the rank."""
    num_bytes: int = 0
    name: str = ""
    """Where the kind does not say it all."""
    is_ahead: bool = False
    """Of the next step, done ahead."""

    @classmethod
    def of_pass(cls, action: Action, begin: float, end: float) -> Bar:
        """That of one pass."""
        return cls(begin, end, KIND_OF_PASS[action.kind], action.microbatch, action.chunk)

    @property
    def length(self) -> float:
        """How long it takes."""
        return self.end - self.begin

    @property
    def label(self) -> str:
        """A pass as the text of a plan has it, such as B0.1; empty for anything else."""
        if self.kind not in _LETTERS or self.microbatch < 0:
            return ""
        return f"{_LETTERS[self.kind]}{self.microbatch}{f'.{self.chunk}' if self.chunk else ''}"

    @property
    def words(self) -> str:
        """What it is, for people."""
        text = self.name or self.kind.value
        if self.microbatch < 0:
            return text
        of = self.label or (
            f"of micro-batch {self.microbatch}{f', chunk {self.chunk}' if self.chunk else ''}"
        )
        return f"{text} {of}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """A rank, or several that do the same.

    Args:
        bundle: counts those that are shown.
        stage, replica: its place in the bundle.
        where: the node, or the kind of node.
        count: of ranks that it stands for.
        has_replicas: whether its stage is wider than one.
    """

    bundle: int
    stage: int
    replica: int = 0
    where: str = ""
    count: int = 1
    has_replicas: bool = False

    @property
    def name(self) -> str:
        """Its place, for people."""
        return f"stage {self.stage}" + (f".{self.replica}" if self.has_replicas else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Bars of one rank that follow each other.

    Args:
        who: the rank.
        role: what it has.
        bars: in order; none begins before the one before has ended.
    """

    who: Who
    role: Role
    bars: tuple[Bar, ...]


class Source(Enum):
    """Where the times are from."""

    FORECAST = "forecast"
    MEASURED = "measured"
    SCHEDULE = "schedule"
    AS_MEASURED = "schedule, passes as long as measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gantt:
    """A step.

    Args:
        source: where its times are from.
        lanes: in order of bundle, stage, replica, role.
        step: how long it takes. Time 0 is when all ranks have ended the step before, and `step`
            when all have ended this one; a rank that is done sooner begins before 0.
        is_in_seconds: else a forward takes 1.
        num_microbatches: of the bundle that does the most.
        num_left_out: of its micro-batches that are not shown.
        step_number: of a measured one, from 0.
    """

    source: Source
    lanes: tuple[Lane, ...]
    step: float
    is_in_seconds: bool = True
    num_microbatches: int = 0
    num_left_out: int = 0
    step_number: int = 0

    @property
    def begin(self) -> float:
        """Of the first bar; 0 at the latest."""
        return min((lane.bars[0].begin for lane in self.lanes), default=0.0)

    @property
    def end(self) -> float:
        """Of the last bar of this step; the step's at the earliest."""
        return max([self.step, *(bar.end for lane in self.lanes for bar in lane.bars)])

    @property
    def ranks(self) -> tuple[Who, ...]:
        """Whose lanes there are, in order."""
        return tuple(dict.fromkeys(lane.who for lane in self.lanes))

    def late(self, seconds: float) -> Gantt:
        """The same where the first stages wait that long for data."""
        if seconds <= 0:
            return self
        lanes = []
        for lane in self.lanes:
            bars = [b._replace(begin=b.begin + seconds, end=b.end + seconds) for b in lane.bars]
            if lane.who.stage == 0 and lane.role is Role.PASSES and bars:
                first = lane.bars[0].begin
                bars.insert(0, Bar(first, bars[0].begin, Kind.OTHER, name="waits for data"))
            lanes.append(replace(lane, bars=tuple(bars)))
        return replace(self, lanes=tuple(lanes), step=self.step + seconds)


def lanes_of(who: Who, role: Role, bars: Iterable[Bar]) -> Iterator[Lane]:
    """Yields as few lanes as hold the bars side by side; none where there are no bars."""
    rows: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.begin, bar.end)):
        for row in rows:
            last = row[-1].end
            if last <= bar.begin + _ROUNDING:
                begin = max(last, bar.begin)
                row.append(bar._replace(begin=begin, end=max(begin, bar.end)))
                break
        else:
            rows.append([bar])
    for row in rows:
        yield Lane(who=who, role=role, bars=tuple(row))


def by_schedule(pipeline: Pipeline, num_microbatches: int) -> Gantt:
    """A step of one bundle by the order of its passes alone: a forward takes 1, a backward 2.

    Args:
        pipeline: the order.
        num_microbatches: of the bundle.
    """
    shown = min(num_microbatches, MOST_MICROBATCHES)
    timeline = simulate(pipeline.bundle(shown), Costs.equal(pipeline.num_chunks))
    assert timeline is not None
    found = by_timeline(timeline, pipeline.shape.widths)
    return replace(
        found,
        source=Source.SCHEDULE,
        is_in_seconds=False,
        num_microbatches=shown,
        num_left_out=num_microbatches - shown,
    )


def by_timeline(timeline: Timeline, widths: Sequence[int]) -> Gantt:
    """The passes of one bundle, in seconds; nothing else takes any time.

    Args:
        timeline: of them.
        widths: of the stages.
    """

    def of(place: Position) -> Iterator[Lane]:
        stage, replica = place
        who = Who(bundle=0, stage=stage, replica=replica, has_replicas=widths[stage] > 1)
        spans = timeline.spans[place]
        return lanes_of(who, Role.PASSES, (Bar.of_pass(s.action, s.start, s.end) for s in spans))

    return Gantt(
        source=Source.AS_MEASURED,
        lanes=tuple(lane for place in sorted(timeline.spans) for lane in of(place)),
        step=timeline.duration,
    )
