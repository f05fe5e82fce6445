"""Asks what is foreseen of a plan, once each, and sees to it that it fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.planning.candidate import Candidate, Forecast, RankMemory, Request
from bundlerun.launcher.planning.cluster import Cluster, NodeKind
from bundlerun.launcher.planning.memory.fits import Room, Shortfall, shortfalls
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
        candidate: the plan, with what is computed again.
        short: where the most is missing.
    """

    candidate: Candidate
    short: Shortfall


def smallest_of(frame: Frame) -> list[NodeKind]:
    """Per stage, the kind of node with the smallest device on which it is."""
    found: list[NodeKind] = []
    first = 0
    for width in frame.shape.widths:
        kinds = [kind for team in frame.teams for kind in team.kinds[first : first + width]]
        found.append(min(kinds, key=device_limit))
        first += width
    return found


def device_limit(kind: NodeKind) -> float:
    """Bytes of a device; inf: not known. CPU slots have no memory but their node's."""
    return inf if kind.host.cores else kind.device_bytes or inf


@dataclass(kw_only=True)
class Judge:
    """Knows all plans that were looked at.

    Args:
        cluster: the nodes.
        request: what is asked for.
        foresee: a step's time.
        memory: of a rank of each stage.
        effort: how many plans may be foreseen.
    """

    cluster: Cluster
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

        What a stage computes again changes no other stage's memory, and makes no step shorter. So
        with devices that have memory of their own, just the stages that do not fit otherwise are
        best. Where a node has too little, the stages that keep the most come first.
        """
        asked = self.request.recompute
        again = asked if asked and frame.can_recompute else frozenset[int]()
        is_open = asked is None and frame.can_recompute
        while True:
            candidate = frame.candidate(cuts, sync, again)
            ranks = self.memory(candidate) if self.is_limited else ()
            short = self._shortfalls(frame, candidate, ranks)
            if not short:
                return candidate
            more = {each.stage for each in short if each.room is Room.DEVICE}
            left = [s for s in range(frame.shape.num_stages) if s not in again]
            if not more and left:
                more = {max(left, key=lambda s: ranks[s].activations)}
            if not is_open or not more - again or any(s in again for s in more):
                self._keep_nearest(Misfit(candidate=candidate, short=short[0]))
                return None
            again |= more

    def _keep_nearest(self, misfit: Misfit) -> None:
        if self.nearest is None or misfit.short.over < self.nearest.short.over:
            self.nearest = misfit

    def _shortfalls(
        self, frame: Frame, candidate: Candidate, ranks: Sequence[RankMemory]
    ) -> list[Shortfall]:
        """What is not enough, the worst first."""
        if not ranks:
            return []
        found = [s for s in shortfalls(ranks, candidate, self.cluster) if s.room is not Room.DEVICE]
        # Devices by where each stage is, with the nodes in the plan's order.
        for stage, (rank, kind) in enumerate(zip(ranks, smallest_of(frame), strict=True)):
            there = 0 if kind.host.cores else kind.device_bytes
            if there and rank.device > there:
                found.append(
                    Shortfall(
                        room=Room.DEVICE, kind=kind, stage=stage, needed=rank.device, there=there
                    )
                )
        return sorted(found, key=lambda each: -each.over)

    @cached_property
    def is_limited(self) -> bool:
        """Whether any memory is known."""
        return any(k.device_bytes or k.host_bytes or k.shm_bytes for k in self.cluster.kinds)
