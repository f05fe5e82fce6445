"""The best plans for a request, and a bound for all plans.

Frames are taken up by what their best cuts may take, the least first; those whose bound is above
the best plan found are never looked at closely:

    quick bound -> exact partition (better bound, cuts) -> foreseen -> moves of cuts -> all cuts
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb, inf

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.search.frame import (
    MOST_LISTED,
    Frame,
    frames_of,
    sample_sizes,
    schemes_of,
)
from bundlerun.launcher.planning.search.judge import (
    Foresee,
    Judge,
    Memory,
    Planned,
    device_limit,
    smallest_of,
)
from bundlerun.launcher.planning.search.misfit import Lump, lump_of, no_frame, too_large
from bundlerun.launcher.planning.search.needs import Needs, in_flight
from bundlerun.launcher.planning.search.partition import Stage, Way, partition
from bundlerun.launcher.planning.search.ruler import Rates, Rows, Ruler
from bundlerun.launcher.planning.search.teams import runs_of, spread

EFFORT = 300
"""Plans that are foreseen at most, by default."""
REFINED = 8
"""Frames whose cuts are moved."""
LISTED = 20_000
"""Cuts of frames of which all are looked at; of other frames only moves are."""
PARTITIONED = 150_000
"""Ends of stages for which starts are looked up, all frames together; about 1 s."""
_OVERHEAD = 200
"""What a stage takes beside, as ends."""
_NEAREST = 40
"""Frames that are looked at to say how much is missing, where nothing fits."""
_STEPS = (1, 2, 3, 5, 8, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was found.

    Args:
        plans: the best first, each with another shape or schedule; one at least.
        bound_s: no plan of this request on this cluster has a step of less.
        num_foreseen: plans whose step was foreseen.
        lump: a piece that no cut can balance.
    """

    plans: tuple[Planned, ...]
    bound_s: float
    num_foreseen: int = 0
    lump: Lump | None = None

    @property
    def gap(self) -> float:
        """How much longer the best plan's step is than the bound, as a share of the bound."""
        step_s = self.plans[0].forecast.step_s
        return step_s / self.bound_s - 1 if self.bound_s > 0 else 0.0

    @property
    def is_optimal(self) -> bool:
        """Whether it is proven that no plan is better."""
        return self.gap <= 1e-9


def best_plans(
    profile: Profile,
    cluster: Cluster,
    request: Request,
    *,
    foresee: Foresee,
    memory: Memory,
    most: int = 5,
    effort: int = EFFORT,
) -> Search:
    """Looks for the plan with the shortest step among all that fit.

    Args:
        profile: what the model costs.
        cluster: the nodes.
        request: what is wanted, and what is not to be chosen.
        foresee: a plan's step time; a pass never takes less than its piece's seconds over the
            device's speed, and nothing starts before what it needs.
        memory: a plan's memory, a rank of each stage; what a stage computes again changes no other
            stage's.
        most: plans to return.
        effort: plans to foresee at most.

    Raises:
        ConfigError: no plan fits; it says what is missing for the nearest one, and what would fit.
    """
    judge = Judge(cluster=cluster, request=request, foresee=foresee, memory=memory, effort=effort)
    return _Hunt(profile, cluster, request, judge).run(most)


class _Hunt:
    def __init__(self, profile: Profile, cluster: Cluster, request: Request, judge: Judge) -> None:
        self._profile = profile
        self._cluster = cluster
        self._request = request
        self._judge = judge
        self._schemes = schemes_of(request)
        rates = Rates.of(profile.update, cluster, request)
        self._costs = {n: profile.at(n) for n in sample_sizes(profile, request)}
        self._rulers = {n: Ruler(rows=Rows(c), rates=rates) for n, c in self._costs.items()}
        self._needs = {n: Needs(c, profile.update) for n, c in self._costs.items()}
        self._bounds: dict[Frame, float] = {}
        self._left = LISTED

    def run(self, most: int) -> Search:
        self._look_around(most)
        self._refine()
        self._exhaust()
        judge = self._judge
        if not judge.best:
            raise self._refusal()
        bound = min([judge.best_s, self._unlisted, *self._bounds.values()])
        plans = self._distinct(most)
        return Search(
            plans=plans,
            bound_s=bound,
            num_foreseen=judge.count,
            lump=lump_of(self._costs[plans[0].candidate.samples]),
        )

    def _refusal(self) -> ConfigError:
        """Why there is no plan."""
        frames = sorted(self._bounds, key=lambda f: (f.samples, -f.num_chunks, f.shape.size))
        for frame in frames[:_NEAREST]:
            _, cuts = self._partitioned(frame, is_limited=False)
            for sync in self._schemes if len(cuts) == frame.num_chunks - 1 else ():
                self._judge.seconds(frame, cuts, sync)
        asked = self._profile, self._cluster, self._request
        nearest = self._judge.nearest
        return too_large(nearest, *asked) if nearest else no_frame(*asked)

    def _distinct(self, most: int) -> tuple[Planned, ...]:
        """The best of each shape and schedule."""
        found: dict[object, Planned] = {}
        for plan in sorted(self._judge.best.values(), key=lambda p: p.forecast.step_s):
            candidate = plan.candidate
            found.setdefault((candidate.shape, candidate.schedule, candidate.chunks), plan)
        return tuple(found.values())[:most]

    def _look_around(self, most: int) -> None:
        """Foresees the cuts of exact partitions, until no other frame can be better."""
        judge = self._judge
        num_pieces = len(self._profile.by_samples[0].pieces)
        waiting: list[tuple[float, int, Frame, tuple[int, ...] | None]] = []
        for number, frame in enumerate(frames_of(self._profile, self._cluster, self._request)):
            ruler = self._rulers[frame.samples]
            self._bounds[frame] = ruler.bound(frame)
            waiting.append((ruler.guess(frame, self._bounds[frame]), number, frame, None))
        heapq.heapify(waiting)
        work = 0
        while waiting and judge.count < judge.effort / 2:
            guess, number, frame, cuts = heapq.heappop(waiting)
            if self._bounds[frame] >= judge.best_s and len(judge.best) >= most:
                continue
            if cuts is not None:
                self._first_look(frame, cuts)
            elif work < PARTITIONED:
                work += frame.num_chunks * (num_pieces + _OVERHEAD)
                bound, cuts = self._partitioned(frame)
                # Without end where no cuts fit.
                self._bounds[frame] = max(self._bounds[frame], bound)
                if bound < inf:
                    later = max(guess, self._bounds[frame])
                    heapq.heappush(waiting, (later, number, frame, cuts))

    def _first_look(self, frame: Frame, cuts: tuple[int, ...]) -> None:
        for sync in self._schemes:
            self._judge.seconds(frame, cuts, sync)

    def _partitioned(
        self, frame: Frame, *, is_limited: bool = True
    ) -> tuple[float, tuple[int, ...]]:
        """A bound for all cuts, and the cuts of which it holds; inf: none fit.

        Args:
            is_limited: whether parts have to fit into memory.
        """
        if self._request.cuts is not None:
            if len(self._request.cuts) != frame.num_chunks - 1:
                return inf, ()
            return self._rulers[frame.samples].of_cuts(
                frame, self._request.cuts
            ), self._request.cuts
        costs = self._costs[frame.samples]
        ruler, needs = self._rulers[frame.samples], self._needs[frame.samples]
        limits = [device_limit(kind) for kind in smallest_of(frame)]
        shares = spread(frame.total, frame.teams)
        busy = [(t, n) for t, n in zip(frame.teams, shares, strict=True) if n]
        per_team = [ruler.lines(frame, team, share) for team, share in busy]
        held = (
            in_flight(frame, min(max(shares), self._mean_share(frame)))
            if is_limited and min(limits) < inf
            else []
        )
        stages = []
        for chunk in range(frame.num_chunks):
            stage = chunk % frame.shape.num_stages
            lines = [line for one in per_team for line in one[chunk]]
            first = (
                needs.first_starts(
                    limits[stage],
                    held[stage] if frame.chunks == 1 else 1,
                    again=self._may_recompute(frame),
                )
                if is_limited and limits[stage] < inf
                else []
            )
            stages.append(Stage(ways=[Way(lines=lines, first=first)]))
        value, starts = partition(stages, len(costs.pieces))
        cuts = tuple(start - 1 for start in starts)
        is_bound = len(busy) == 1 and frame.chunks == 1
        return value + ruler.rates.fixed if is_bound or value == inf else 0.0, cuts

    @staticmethod
    def _mean_share(frame: Frame) -> int:
        return divided_up(frame.total, sum(team.count for team in frame.teams))

    def _may_recompute(self, frame: Frame) -> bool:
        asked = self._request.recompute
        return frame.can_recompute and (asked is None or bool(asked))

    def _refine(self) -> None:
        """Moves the cuts of the best frames until no move of one of them helps."""
        judge = self._judge
        best = sorted(judge.best, key=judge.of_frame)[:REFINED]
        for frame in best:
            while not judge.is_spent and self._moved(frame):
                pass

    def _moved(self, frame: Frame) -> bool:
        judge = self._judge
        now = judge.best[frame]
        before = now.forecast.step_s
        cuts, sync = now.candidate.cuts, now.candidate.sync
        for other in self._neighbours(cuts):
            if judge.is_spent:
                break
            bound = self._rulers[frame.samples].of_cuts(frame, other)
            if bound < before and judge.seconds(frame, other, sync) < before:
                return True
        return False

    def _neighbours(self, cuts: Sequence[int]) -> Iterator[tuple[int, ...]]:
        if self._request.cuts is not None:
            return
        num_boundaries = len(self._profile.by_samples[0].boundaries)
        for step in _STEPS:
            for index, cut in enumerate(cuts):
                low = cuts[index - 1] if index else -1
                high = cuts[index + 1] if index + 1 < len(cuts) else num_boundaries
                for place in (cut - step, cut + step):
                    if low < place < high:
                        yield (*cuts[:index], place, *cuts[index + 1 :])

    def _exhaust(self) -> None:
        """Looks at all cuts of the frames that could still be better, where these are few."""
        judge = self._judge
        for frame in sorted(self._bounds, key=self._bounds.__getitem__):
            if judge.is_spent or self._bounds[frame] >= judge.best_s:
                break
            self._bounds[frame] = self._exhausted(frame)

    def _exhausted(self, frame: Frame) -> float:
        """A bound for the frame: the least there is, if there was time for all."""
        judge, ruler = self._judge, self._rulers[frame.samples]
        num_boundaries = len(self._profile.by_samples[0].boundaries)
        if self._request.cuts is not None:
            rows: list[tuple[int, ...]] = [self._request.cuts]
        elif comb(num_boundaries, frame.num_chunks - 1) > self._left:
            return self._bounds[frame]
        else:
            rows = list(combinations(range(num_boundaries), frame.num_chunks - 1))
            self._left -= len(rows)
        for bound, cuts in sorted((ruler.of_cuts(frame, cuts), cuts) for cuts in rows):
            if bound >= judge.best_s:
                return bound
            for sync in self._schemes:
                if judge.is_spent:
                    return max(bound, self._bounds[frame])
                judge.seconds(frame, cuts, sync)
        return judge.of_frame(frame)

    @cached_property
    def _unlisted(self) -> float:
        """A bound for shapes that were not looked at; inf: there are none."""
        runs = runs_of(self._cluster)
        devices = sum(kind.devices * count for kind, count in runs)
        largest = max(kind.devices for kind, _ in runs)
        if self._request.shape or max(largest, 0) <= MOST_LISTED >= devices:
            return inf
        speed = sum(kind.speed * kind.devices * count for kind, count in runs)
        found = []
        for samples, ruler in self._rulers.items():
            total = self._request.batch_size // samples
            found.append(total * ruler.rows.work[-1] / speed + ruler.rates.fixed)
        return min(found)
