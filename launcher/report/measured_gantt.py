"""Pure: a measured step as a Gantt chart, and the one that its passes would make by plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bundlerun.launcher.planning.picture.gantt import (
    KIND_OF_PASS,
    Bar,
    Gantt,
    Kind,
    Lane,
    Role,
    Source,
    Who,
    by_timeline,
    lanes_of,
)
from bundlerun.launcher.report.clocks import on_one_clock
from bundlerun.launcher.report.planned import action_of, planned, whole_bundles
from bundlerun.launcher.run_folder.measured import MeasuredRank, Span

_OWN: Mapping[str, Kind] = {
    "forward": Kind.FORWARD,
    "backward": Kind.BACKWARD,
    "send": Kind.HANDOVER,
    "receive": Kind.WAIT,
    "sync_wait": Kind.WAIT,
    "snapshot_wait": Kind.WAIT,
    "optimizer": Kind.UPDATE,
    "data": Kind.OTHER,
    "launch": Kind.OTHER,
    "checkpoint": Kind.OTHER,
    "validate": Kind.OTHER,
}
"""What a rank's own thread or its device does."""
_LEGS: Mapping[str, Kind] = {
    "collect": Kind.COLLECT,
    "exchange": Kind.EXCHANGE,
    "gather": Kind.EXCHANGE,
    "distribute": Kind.DISTRIBUTE,
}


def measured_gantt(ranks: Sequence[MeasuredRank], *, most_ranks: int = 16) -> Gantt:
    """A measured step.

    Args:
        ranks: that have measured it, one at least. Time 0 is when the first stages begin it.
        most_ranks: that are shown; whole bundles, but one at least.
    """
    ranks = on_one_clock(ranks)
    # Stages behind the first one begin with a message: on a GPU nobody sees them wait for it.
    firsts = [rank for rank in ranks if rank.stage == min(rank.stage for rank in ranks)]
    since_s = max(rank.spans[0].begin_s for rank in firsts)
    ended_s = max(span.end_s for rank in ranks for span in rank.spans if not span.ahead)
    wide = {(rank.bundle, rank.stage) for rank in ranks if rank.replica}
    return Gantt(
        source=Source.MEASURED,
        lanes=tuple(
            lane
            for rank in whole_bundles(ranks, most_ranks)
            for lane in _lanes(rank, since_s, has_replicas=(rank.bundle, rank.stage) in wide)
        ),
        step=ended_s - since_s,
        num_microbatches=max(map(_num_microbatches, ranks)),
        step_number=ranks[0].step,
    )


def as_measured(ranks: Sequence[MeasuredRank]) -> Gantt | None:
    """The passes of the first bundle as long as they took, where nobody waits for a link.

    None where its passes do not make a whole step, or nothing was measured.
    """
    if not ranks:
        return None
    first = [rank for rank in ranks if rank.bundle == min(rank.bundle for rank in ranks)]
    timeline = planned(first)
    if timeline is None:
        return None
    stages = [stage for stage, _ in timeline.spans]
    return by_timeline(timeline, [stages.count(stage) for stage in range(1 + max(stages))])


def _num_microbatches(rank: MeasuredRank) -> int:
    actions = (action_of(span.action) for span in rank.spans)
    return 1 + max((action.microbatch for action in actions if action is not None), default=-1)


def _lanes(rank: MeasuredRank, since_s: float, *, has_replicas: bool) -> Iterator[Lane]:
    who = Who(
        bundle=rank.bundle,
        stage=rank.stage,
        replica=rank.replica,
        where=rank.node,
        has_replicas=has_replicas,
    )
    found: dict[Role, list[Bar]] = {Role.PASSES: [], Role.SUMS: [], Role.BEHIND: []}
    for span in rank.spans:
        role, bar = _bar(span)
        found[role].append(bar._replace(begin=bar.begin - since_s, end=bar.end - since_s))
    for role, bars in found.items():
        yield from lanes_of(who, role, bars)


def _bar(span: Span) -> tuple[Role, Bar]:
    action = action_of(span.action)
    begin, end, is_ahead = span.begin_s, span.end_s, bool(span.ahead)
    if span.phase in _LEGS:
        return Role.SUMS, Bar(begin, end, _LEGS[span.phase], name=span.phase)
    if span.phase not in _OWN:
        return Role.BEHIND, Bar(begin, end, Kind.OTHER, name=span.phase)
    kind = _OWN[span.phase]
    if action is None:
        return Role.PASSES, Bar(begin, end, kind, name=span.phase)
    if kind in (Kind.FORWARD, Kind.BACKWARD):
        kind = KIND_OF_PASS[action.kind]
    name = "" if kind in KIND_OF_PASS.values() else span.phase
    return Role.PASSES, Bar(
        begin, end, kind, action.microbatch, action.chunk, name=name, is_ahead=is_ahead
    )
