"""Asks what is foreseen of a plan, once each, and sees to it that it fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.planning.candidate import Candidate, Forecast, RankMemory, Request
from bundlerun.launcher.planning.search.frame import Frame

Foresee = Callable[[Candidate], Forecast]
Memory = Callable[[Candidate], tuple[RankMemory, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and what is foreseen of it."""

    candidate: Candidate
    forecast: Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A plan that does not fit.

    Args:
        candidate: the plan, with all that could be computed again.
        stage: that needs the most above what its device has.
        needs: bytes.
        has: bytes.
    """

    candidate: Candidate
    stage: int
    needs: int
    has: float

    @property
    def over(self) -> float:
        """Bytes too many."""
        return self.needs - self.has


def limits_of(frame: Frame) -> list[float]:
    """Per stage, the memory of the smallest device on which it is; inf: not known."""
    found: list[float] = []
    first = 0
    for width in frame.shape.widths:
        kinds = [kind for team in frame.teams for kind in team.kinds[first : first + width]]
        found.append(min(kind.device_bytes or inf for kind in kinds))
        first += width
    return found


@dataclass(slots=True, kw_only=True)
class Judge:
    """Knows all plans that were looked at.

    Args:
        request: what is asked for.
        foresee: a step's time.
        memory: of a rank of each stage.
        effort: how many plans may be foreseen.
    """

    request: Request
    foresee: Foresee
    memory: Memory
    effort: int
    count: int = 0
    best: dict[Frame, Planned] = field(default_factory=dict)
    nearest: Misfit | None = None
    _known: dict[tuple[Frame, tuple[int, ...], SchemeName], float] = field(default_factory=dict)

    @property
    def is_spent(self) -> bool:
        """Whether no more may be foreseen."""
        return self.count >= self.effort

    @property
    def best_s(self) -> float:
        """The least time of a step so far; inf: no plan fits so far."""
        return min((plan.forecast.step_s for plan in self.best.values()), default=inf)

    def of_frame(self, frame: Frame) -> float:
        """The least time with this frame so far."""
        return self.best[frame].forecast.step_s if frame in self.best else inf

    def seconds(self, frame: Frame, cuts: Sequence[int], sync: SchemeName) -> float:
        """Of a step with this plan; inf: it does not fit."""
        key = frame, tuple(cuts), sync
        if key not in self._known:
            self._known[key] = self._look(frame, cuts, sync)
        return self._known[key]

    def _look(self, frame: Frame, cuts: Sequence[int], sync: SchemeName) -> float:
        candidate = self._fitting(frame, cuts, sync)
        if candidate is None:
            return inf
        self.count += 1
        forecast = self.foresee(candidate)
        if forecast.step_s < self.of_frame(frame):
            self.best[frame] = Planned(candidate=candidate, forecast=forecast)
        return forecast.step_s

    def _fitting(self, frame: Frame, cuts: Sequence[int], sync: SchemeName) -> Candidate | None:
        """The plan that computes as little again as fits; None: it does not fit.

        What a stage computes again changes no other stage's memory, and makes no step shorter: so
        just the stages that do not fit otherwise are best.
        """
        asked = self.request.recompute
        again = asked if asked and frame.can_recompute else frozenset[int]()
        candidate = frame.candidate(cuts, sync, again)
        over = self._over(frame, candidate)
        if over and asked is None and frame.can_recompute:
            candidate = frame.candidate(cuts, sync, frozenset(miss.stage for miss in over))
            over = self._over(frame, candidate)
        for miss in over:
            if self.nearest is None or miss.over < self.nearest.over:
                self.nearest = miss
        return None if over else candidate

    def _over(self, frame: Frame, candidate: Candidate) -> list[Misfit]:
        limits = limits_of(frame)
        if min(limits) == inf:
            return []
        needs = [memory.device for memory in self.memory(candidate)]
        return [
            Misfit(candidate=candidate, stage=stage, needs=need, has=limit)
            for stage, (need, limit) in enumerate(zip(needs, limits, strict=True))
            if need > limit
        ]
