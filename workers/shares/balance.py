"""Pure: when micro-batches are shared out anew, and how; the same on every rank.

    windows     |---|---|---|---|---|---|---|    some steps each
    bundle 1     33  33  50  66  66  66  66 ms   a micro-batch of it takes
    shares       6+6                ^ 8+4        three windows in a row say that it pays

A window alone may be noise: what is decided has to pay in each of the last ones, and in more of
them where it pays little, or follows soon on another change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.data.order import Speeds, share_out
from bundlerun.workers.shares.spent import Spent

GAIN, LEAST_GAIN = 0.15, 0.05
"""Share of the longest bundle's computing that a change has to save in each window; the least one
is asked of `TIMES_WINDOWS` times as many."""
TIMES_WINDOWS = 3
LEAST_STEPS, MOST_STEPS = 3, 50
LEAST_S = 0.2
"""A window has so many steps, and lasts so long on the rank on which it is longest."""
NUM_WINDOWS, MOST_WINDOWS = 3, 24
"""That a change has to pay in; doubled where the one before was less than `SOON` steps ago."""
SOON = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Other shares.

    Args:
        first_step: from which on, of the run.
        speeds: by which they are.
        counts: micro-batches of each bundle in a whole step. before: until then.
        span_s: what the bundle that computes longest is foreseen to. span_before_s: in the last
            windows.
        slowest: the rank that bounds the bundle that loses most.
    """

    first_step: int
    speeds: Speeds
    counts: tuple[int, ...]
    before: tuple[int, ...]
    span_s: float
    span_before_s: float
    slowest: int


class Balance:
    """Looks at what all ranks have spent, after each step.

    Args:
        topology: of the round.
        num_microbatches: of a whole step.
        counts: how many of them each bundle has.
    """

    def __init__(
        self,
        topology: Topology,
        num_microbatches: int,
        counts: Callable[[], Sequence[int]],
    ) -> None:
        self._topology = topology
        self._num_microbatches = num_microbatches
        self._counts = counts
        self._begin: tuple[int, Mapping[int, Spent]] | None = None
        self._windows: list[Speeds] = []
        self._last = Speeds.equal(topology.num_bundles)
        self._first_step = 0
        """From which on the last change holds: what was spent before it is of other shares."""
        self._changed_at: int | None = None
        self._num_needed = NUM_WINDOWS

    def see(self, step: int, spent: Mapping[int, Spent]) -> Change | None:
        """What is to change.

        Args:
            step: finished steps.
            spent: in all of them but the last.
        """
        if step <= self._first_step:
            return None
        if self._begin is None:
            self._begin = step, spent
            return None
        first, before = self._begin
        added = {rank: spent[rank].since(before[rank]) for rank in spent}
        longest_s = max(each.wall_s for each in added.values())
        num_steps = step - first
        if num_steps < LEAST_STEPS or (longest_s < LEAST_S and num_steps < MOST_STEPS):
            return None
        self._begin = step, spent
        self._last = self._speeds(added)
        self._windows = [*self._windows, self._last][-TIMES_WINDOWS * self._num_needed :]
        for num, gain in ((self._num_needed, GAIN), (TIMES_WINDOWS * self._num_needed, LEAST_GAIN)):
            if len(self._windows) >= num and self._pays(self._windows[-num:], gain):
                return self._change(step, spent, added, Speeds.mean(self._windows[-num:]))
        return None

    def _pays(self, windows: Sequence[Speeds], gain: float) -> bool:
        """Whether the shares that suit all of them save as much in each."""
        before = self._counts()
        counts = share_out(self._num_microbatches, Speeds.mean(windows))
        return all(each.span_s(counts) <= (1 - gain) * each.span_s(before) for each in windows)

    def _change(
        self, step: int, spent: Mapping[int, Spent], added: Mapping[int, Spent], speeds: Speeds
    ) -> Change:
        before, counts = self._counts(), share_out(self._num_microbatches, speeds)
        # Samples of a step that somebody has asked for are shared out as before; the next step may
        # have begun.
        first_step = 1 + max(step, *(int(each.asked_for) for each in spent.values()))
        is_soon = self._changed_at is not None and step - self._changed_at < SOON
        self._num_needed = min(MOST_WINDOWS, 2 * self._num_needed) if is_soon else NUM_WINDOWS
        self._changed_at, self._first_step = step, first_step
        self._windows, self._begin = [], None
        slowest = max(range(len(counts)), key=lambda bundle: before[bundle] - counts[bundle])
        return Change(
            first_step=first_step,
            speeds=speeds,
            counts=tuple(counts),
            before=tuple(before),
            span_s=speeds.span_s(counts),
            span_before_s=speeds.span_s(before),
            slowest=max(
                self._topology.bundles[slowest],
                key=lambda rank: added[rank].compute_s,
            ),
        )

    def _speeds(self, added: Mapping[int, Spent]) -> Speeds:
        """Of each bundle; one that had nothing to do is as it was."""
        last = self._last
        found = [
            self._of_bundle(bundle, added) or (last.seconds[bundle], last.fill_s[bundle])
            for bundle in range(self._topology.num_bundles)
        ]
        return Speeds(tuple(pace for pace, _ in found), tuple(fill for _, fill in found))

    def _of_bundle(self, bundle: int, added: Mapping[int, Spent]) -> tuple[float, float] | None:
        """What a further micro-batch takes it, and what the first one takes besides."""
        ranks = self._topology.bundles[bundle]
        count = added[ranks[0]].num_microbatches
        if not count:
            return None
        per = {rank: added[rank].compute_s / count for rank in ranks}
        pace = max(per.values())
        # A stage of several ranks takes as many times longer for one: they take turns (I3).
        widths = self._topology.shape.widths
        of_stage = [0.0] * len(widths)
        for rank, (stage, _) in zip(ranks, self._topology.positions, strict=True):
            of_stage[stage] = max(of_stage[stage], per[rank] * widths[stage])
        return (pace, sum(of_stage) - pace) if pace > 0 else None


def is_memory_kept(pipeline: Pipeline, num_microbatches: int, num_bundles: int) -> bool:
    """Whether no stage holds more at once with more micro-batches than an equal share.

    Args:
        num_microbatches: of a step.
        num_bundles: that share them.
    """
    equal = divided_up(num_microbatches, num_bundles)
    # What is in flight settles within two rounds of the bundle, or grows without an end.
    near = range(equal + 1, equal + 1 + 2 * pipeline.chunks_per_stage * pipeline.shape.size)
    counts = {min(count, num_microbatches) for count in (*near, num_microbatches)}
    for stage in range(pipeline.shape.num_stages):
        most = max_in_flight(pipeline.order(stage, 0, equal))
        if any(max_in_flight(pipeline.order(stage, 0, count)) > most for count in counts):
            return False
    return True
