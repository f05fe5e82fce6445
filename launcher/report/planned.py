"""Pure: the step that a measured one would be if nothing got in the way of its passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean

from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.schedule import Action, Pass, Schedule
from bundlerun.launcher.layout.timeline import Costs, Timeline, simulate
from bundlerun.launcher.run_folder.measured import MeasuredRank

_COMPUTES = ("forward", "backward")


def planned(ranks: Sequence[MeasuredRank]) -> Timeline | None:
    """The passes of one bundle in their order, each as long as its kind took in the mean.

    Transfers take nothing and nobody waits but for what it needs: what the measured step is longer
    by is lost to links, to uneven passes, or to whatever else the machine did.

    Args:
        ranks: of one bundle.

    Returns:
        None where a rank is missing, or its passes do not make a whole step.
    """
    schedule: Schedule = {}
    seconds: dict[tuple[Pass, int], list[float]] = defaultdict(list)
    for rank in ranks:
        order = passes(rank)
        chunks = Chunks(1 + max(r.stage for r in ranks), rank.chunks)
        for action, (begin_s, end_s) in order.items():
            seconds[action.kind, chunks.number(rank.stage, action.chunk)].append(end_s - begin_s)
        schedule[rank.stage, rank.replica] = list(order)
    num_chunks = 1 + max((chunk for _, chunk in seconds), default=-1)
    whole = {chunk for kind, chunk in seconds if kind is Pass.FORWARD}
    if not num_chunks or whole != set(range(num_chunks)):
        return None
    if num_chunks % (1 + max(stage for stage, _ in schedule)):
        return None
    times = {kind: [_mean(seconds[kind, c]) for c in range(num_chunks)] for kind in Pass}
    backward = [b + w for b, w in zip(times[Pass.BACKWARD], times[Pass.WEIGHT], strict=True)]
    costs = Costs(forward=times[Pass.FORWARD], backward=backward, weight=times[Pass.WEIGHT])
    try:
        return simulate(schedule, costs)
    except (KeyError, IndexError, ValueError):  # a rank of the bundle has measured nothing
        return None


def whole_bundles(ranks: Sequence[MeasuredRank], most: int) -> list[MeasuredRank]:
    """Ranks to show: whole bundles as long as there is room; of a larger one its first ranks."""
    shown: list[MeasuredRank] = []
    for bundle in sorted({rank.bundle for rank in ranks}):
        of_it = sorted((r for r in ranks if r.bundle == bundle), key=lambda r: (r.stage, r.replica))
        if shown and len(shown) + len(of_it) > most:
            break
        shown += of_it[: 2 * most]
    return shown


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else 0.0


def passes(rank: MeasuredRank) -> Mapping[Action, tuple[float, float]]:
    """What a rank computed, in order: the pass, and when.

    The first forward of a step may have been done ahead, at the end of the step before: then that
    of the next step, which is at the end here, stands in its place.
    """
    found: dict[Action, tuple[float, float]] = {}
    ahead: dict[Action, tuple[float, float]] = {}
    for span in rank.spans:
        action = action_of(span.action)
        if action is not None and span.phase in _COMPUTES:
            (ahead if span.ahead else found)[action] = span.begin_s, span.end_s
    return {**{a: s for a, s in ahead.items() if a not in found}, **found}


def action_of(text: str) -> Action | None:
    """Reads "F3" or "B0.1"; None where it is neither."""
    number, _, chunk = text[1:].partition(".")
    kinds = {kind.value: kind for kind in Pass}
    if text[:1] not in kinds or not number.isdecimal() or not (chunk.isdecimal() or not chunk):
        return None
    return Action(kinds[text[0]], int(number), int(chunk or 0))
