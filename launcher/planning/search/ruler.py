"""What no plan can do in less time, and what stages would take: both from the same lines.

A stage of a bundle with x micro-batches, of which its busiest device does n, L = n / speed:

    first stage    |F|       ...       |B|  |F|        from a step's begin there to the next step's
    earlier ones     |F|     ...     |B|
    the stage           |L F and B ..|
                        |L F and B .. (all but a B)|exchange|optimizer|   from its begin to the next

Steps follow each other as soon as a stage has all it needs, so these are two circles: the first
stage begins anew after the last backward has come back to it, each stage after its own optimizer.
Each item of a row never starts before the one before it has ended. So a step is as long as its
longest row; links, waits and computing again only add. All end with the time of any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise

from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import ModelCosts, UpdateCosts
from bundlerun.launcher.planning.search.frame import Frame
from bundlerun.launcher.planning.search.partition import Line
from bundlerun.launcher.planning.search.teams import Team


class Rows:
    """Sums over a model's pieces, from the first to before each one; the loss is in the last."""

    def __init__(self, costs: ModelCosts) -> None:
        pieces = costs.pieces
        self.count = len(pieces)
        self.forward = list(accumulate((p.forward_s for p in pieces), initial=0.0))
        self.backward = list(accumulate((p.backward_s for p in pieces), initial=0.0))
        self.backward[-1] += costs.loss_s
        self.weight = list(accumulate((p.weight_s for p in pieces), initial=0.0))
        self.trained = list(accumulate((p.trained_bytes for p in pieces), initial=0))
        self.work = [f + b for f, b in zip(self.forward, self.backward, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a step costs beside passes, at the least.

    Args:
        update: seconds per trained byte that the optimizer takes.
        exchange: seconds per trained byte that a node needs to tell the others.
        fixed: seconds of any step.
    """

    update: float
    exchange: float
    fixed: float

    @classmethod
    def of(cls, update: UpdateCosts, cluster: Cluster, request: Request) -> Rates:
        """The least that they can be, on the fastest device and link."""
        top = max([1.0, *(kind.speed for kind in cluster.kinds)])
        links = [cluster.between, *cluster.pairs.values()]
        share = request.exchange.share
        return cls(
            update=update.update_s_per_byte / top,
            exchange=share / max(link.bytes_per_s for link in links),
            fixed=update.step_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the busiest device of a stage has to do.

    Args:
        passes: micro-batches over its speed.
        slowness: one over its speed.
    """

    passes: float
    slowness: float


def loads_of(frame: Frame, team: Team, share: int) -> list[Load]:
    """Per stage, for a bundle that does `share` micro-batches, 1 or more."""
    found: list[Load] = []
    first = 0
    for width in frame.shape.widths:
        # I3: replica r of a stage of width w does the micro-batches j with j mod w = r.
        replicas = [
            (divided_up(share - r, width) / kind.speed, 1 / kind.speed)
            for r, kind in enumerate(team.kinds[first : first + width])
            if r < share
        ]
        found.append(Load(passes=max(replicas)[0], slowness=max(replicas)[1]))
        first += width
    return found


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """Bounds and costs for micro-batches of one size.

    Args:
        rows: of the model.
        rates: of the rest.
    """

    rows: Rows
    rates: Rates
    _known: dict[tuple[bool, float, float], float] = field(default_factory=dict)

    def lines(self, frame: Frame, team: Team, share: int) -> list[list[Line]]:
        """Per stage, the paths of a step through it, for a bundle that does `share` micro-batches.

        With several chunks per stage: per chunk, as if all chunks of its stage were as long; that
        is no bound.
        """
        loads = loads_of(frame, team, share)
        if frame.chunks > 1:
            work = [(frame.chunks * load.passes, self.rows.work) for load in loads]
            return [
                [_line([passes * value for value in row])] for passes, row in work * frame.chunks
            ]
        fill = 1 / team.top_speed
        return [self._paths(frame, stage, load, fill) for stage, load in enumerate(loads)]

    def _paths(self, frame: Frame, stage: int, load: Load, fill: float) -> list[Line]:
        rows, rates = self.rows, self.rates
        # With zero-bubble nobody waits for the passes that make the gradients of weights.
        way = self._unweighted if frame.schedule == "zero-bubble" else rows.work
        # A forward to the stage, all it does, and the last backward to the first stage.
        found = [_line([load.passes * w for w in way], fill, way)]
        # All it does, the optimizer.
        if rates.update or frame.schedule == "zero-bubble":
            ends = [
                load.passes * w + rates.update * p
                for w, p in zip(rows.work, rows.trained, strict=True)
            ]
            found.append(_line(ends))
        # All but the last backward, during which the first sums leave; those, the optimizer.
        if stage in frame.exchanged and rates.exchange:
            each = rates.update + rates.exchange
            ends = [
                load.passes * w - load.slowness * b + each * p
                for w, b, p in zip(rows.work, rows.backward, rows.trained, strict=True)
            ]
            found.append(_line(ends))
        return found

    @cached_property
    def _unweighted(self) -> list[float]:
        return [w - g for w, g in zip(self.rows.work, self.rows.weight, strict=True)]

    def bound(self, frame: Frame) -> float:
        """The least time of a step with this frame, whatever the cuts; quick.

        Work: the devices together do all micro-batches. With equally fast devices the first stages
        wait at the end and the last ones at the beginning, too: let the step take T, v the speed,
        and C the work of a micro-batch before a stage. In T the stage does at most (T - C / v) / L
        of a micro-batch's work, so v T - C shrinks from stage to stage by the factor 1 - 1 / (v L)
        at most, and is not below v T - W at the end; that gives T.

        Way: some micro-batch goes through all pieces and back, on the fastest devices.

        Largest piece: some stage has it; before that, a forward has come through the pieces before
        it, and a backward has to go back through them. What of these is in the same stage, the
        stage does as often as the piece itself.
        """
        rows, fixed = self.rows, self.rates.fixed
        way = self._unweighted if frame.schedule == "zero-bubble" else rows.work
        if frame.chunks > 1:
            way = self._unweighted
        top = max(team.top_speed for team in frame.teams)
        found = [self._by_work(frame), way[-1] / top]
        if len(frame.teams) == 1:
            team = frame.teams[0]
            loads = loads_of(frame, team, divided_up(frame.total, team.count))
            least = min(load.passes for load in loads)
            found.append(self._longest(rows.work, 0.0, least))
            if frame.chunks == 1:
                found.append(self._longest(way, 1 / top, least))
            if way is rows.work and len(set(team.kinds)) == 1:
                left = 1.0
                for load in loads:
                    left *= 1 - load.slowness / load.passes
                found.append(rows.work[-1] / (top * (1 - left)))
        return max(found) + fixed

    def _longest(self, way: list[float], fill: float, passes: float) -> float:
        """Of all pieces, what comes before it and what its device does of it."""
        # Few loads and speeds are met in thousands of frames.
        key = way is self.rows.work, fill, passes
        if key not in self._known:
            self._known[key] = max(
                fill * now + passes * (after - now) for now, after in pairwise(way)
            )
        return self._known[key]

    def guess(self, frame: Frame, bound: float) -> float:
        """About what the best cuts take: work, filling and emptying the bundle, sums.

        Args:
            bound: of the frame, which is never more than that.
        """
        share = max(1.0, frame.total / sum(team.count for team in frame.teams))
        idle = (frame.shape.size - max(frame.shape.widths)) / share / frame.chunks
        # Weight passes fill about two thirds of it.
        idle /= 3 if frame.schedule == "zero-bubble" else 1
        sums = self.rows.trained[-1] * self.rates.exchange if frame.exchanged else 0.0
        guessed = self._by_work(frame) * (1 + idle) + sums / frame.shape.num_stages
        return max(guessed + self.rates.fixed, bound)

    def _by_work(self, frame: Frame) -> float:
        work, teams = self.rows.work[-1], frame.teams
        if len(teams) == 1:
            return divided_up(frame.total, teams[0].count) * work / teams[0].speed
        # The least time in which whole micro-batches on all bundles are as many as there are.
        low = frame.total * work / sum(team.speed * team.count for team in teams)
        high = low + work / min(team.speed for team in teams)
        for _ in range(40):
            middle = (low + high) / 2
            done = sum(t.count * int(middle * t.speed / work + 1e-9) for t in teams) if work else 0
            low, high = (low, middle) if done >= frame.total else (middle, high)
        return low

    def of_cuts(self, frame: Frame, cuts: Sequence[int]) -> float:
        """The least time of a step with these cuts, as `Candidate` has them."""
        ends = [0, *(cut + 1 for cut in cuts), self.rows.count]
        parts = list(pairwise(ends))
        teams = frame.teams
        if len(teams) == 1:
            share = divided_up(frame.total, teams[0].count)
            return self._of_share(frame, teams[0], share, parts) + self.rates.fixed
        paces = [(team.count, self._paces(frame, team, parts)) for team in teams]
        # The least time in which all bundles together do as many micro-batches as there are; what
        # is returned is a little too short for that.
        low, high = 0.0, 1.0
        while _done(paces, high) < frame.total:
            low, high = high, 2 * high
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if _done(paces, middle) >= frame.total else (middle, high)
        return low + self.rates.fixed

    def _paces(
        self, frame: Frame, team: Team, parts: Sequence[tuple[int, int]]
    ) -> list[tuple[float, float]]:
        """Per stage of a bundle, the time that it cannot use, and micro-batches per second."""
        rows, widths = self.rows, frame.shape.widths
        way = self._unweighted if frame.schedule == "zero-bubble" else rows.work
        found, first = [], 0
        for stage, width in enumerate(widths):
            speed = sum(kind.speed for kind in team.kinds[first : first + width])
            first += width
            own = parts[stage :: len(widths)]
            work = sum(rows.work[end] - rows.work[start] for start, end in own)
            if work:
                found.append((0.0, speed / work))
            start, end = own[0]
            if len(own) == 1 and way[end] > way[start]:
                found.append((way[start] / team.top_speed, speed / (way[end] - way[start])))
        return found

    def _of_share(
        self, frame: Frame, team: Team, share: int, parts: Sequence[tuple[int, int]]
    ) -> float:
        rows, rates = self.rows, self.rates
        loads = loads_of(frame, team, share)
        num_stages = len(loads)
        if frame.chunks > 1:
            work = [rows.work[end] - rows.work[start] for start, end in parts]
            return max(
                load.passes * sum(work[stage::num_stages]) for stage, load in enumerate(loads)
            )
        way = self._unweighted if frame.schedule == "zero-bubble" else rows.work
        longest = 0.0
        for stage, (load, (start, end)) in enumerate(zip(loads, parts, strict=True)):
            fill = 1 / team.top_speed
            own = load.passes * (rows.work[end] - rows.work[start])
            trained = rows.trained[end] - rows.trained[start]
            back = fill * way[start] + load.passes * (way[end] - way[start])
            longest = max(longest, back, own + rates.update * trained)
            if stage in frame.exchanged:
                last = load.slowness * (rows.backward[end] - rows.backward[start])
                longest = max(longest, own - last + (rates.update + rates.exchange) * trained)
        return longest


def _done(paces: Sequence[tuple[int, Sequence[tuple[float, float]]]], seconds: float) -> int:
    """Whole micro-batches of all bundles in a time, at most."""
    return sum(
        count * max(0, int(min(((seconds - idle) * p for idle, p in stages), default=1e9) + 1e-9))
        for count, stages in paces
    )


def _line(ends: list[float], fill: float = 0.0, before: Sequence[float] = ()) -> Line:
    """A cost that grows with its end as `ends` does, and `fill` times `before` up to its start."""
    if not fill:
        return ends, ends
    return ends, [value - fill * b for value, b in zip(ends, before, strict=True)]
