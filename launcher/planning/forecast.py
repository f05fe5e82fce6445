"""What a plan's step takes on a cluster, and what the time goes for.

without links and sums   computing | bubble |
without sums             ...                | links |
all of it                ...                        | what of the sums is not hidden |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from bundlerun.launcher.layout.bucket_size import bucket_bytes
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.planning.candidate import Candidate, Forecast, RankMemory, Request, Term
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.picture.gantt import MOST_MICROBATCHES, Gantt
from bundlerun.launcher.planning.simulation.cells import Cell, cells, loads
from bundlerun.launcher.planning.simulation.step import Setting, play, watch
from bundlerun.launcher.planning.simulation.work import work_of

_FEW = 24
"""Micro-batches of a bundle up to which all are looked at."""


def foresee(
    profile: Profile,
    candidate: Candidate,
    cluster: Cluster,
    request: Request,
    memory: tuple[RankMemory, ...] = (),
) -> Forecast:
    """The step of a plan.

    Args:
        profile: of the model.
        candidate: the plan.
        cluster: what it runs on.
        request: what is wanted.
        memory: of its ranks, by stage; only passed on.

    Raises:
        ConfigError: the cluster does not hold one bundle.
    """
    setting = _setting(profile, candidate, cluster, request)
    most = max(n for load in setting.loads for n in load.microbatches)
    full = 2 * candidate.shape.size * max(1, candidate.chunks)
    if most <= max(_FEW, 2 * full):
        found = _Foreseen.of(setting)
    else:
        # Micro-batch after micro-batch adds the same once the pipeline is full.
        few, more = (_Foreseen.of(_shorter(setting, n / most)) for n in (full, 2 * full))
        found = few.on_line(more, (most - full) / full)
    late_s = max(0.0, _loading_s(setting, candidate.samples, profile) - found.step_s)
    terms = found.terms | {Term.OTHER: found.terms[Term.OTHER] + late_s}
    return Forecast(
        step_s=sum(terms.values()),
        terms=terms,
        bubble=found.idle,
        egress_bytes=round(found.egress_bytes),
        exchange_s=found.exchange_s,
        memory=memory,
    )


def foreseen_step(
    profile: Profile,
    candidate: Candidate,
    cluster: Cluster,
    request: Request,
    *,
    most_ranks: int = 16,
) -> Gantt:
    """The step of a plan as it goes by, lane by lane.

    Of very many micro-batches only as many are looked at as can be told apart: then it is shorter
    than the step that `foresee` says.

    Args:
        profile, candidate, cluster, request: as for `foresee`.
        most_ranks: that are shown, but one bundle at least.

    Raises:
        ConfigError: the cluster does not hold one bundle.
    """
    setting = _setting(profile, candidate, cluster, request)
    most = max(n for load in setting.loads for n in load.microbatches)
    if most > MOST_MICROBATCHES:
        setting = _shorter(setting, MOST_MICROBATCHES / most)
    found = watch(setting, most_ranks=most_ranks)
    found = found.late(max(0.0, _loading_s(setting, candidate.samples, profile) - found.step))
    return replace(found, num_left_out=most - found.num_microbatches)


def _setting(profile: Profile, candidate: Candidate, cluster: Cluster, request: Request) -> Setting:
    costs = profile.at(candidate.samples)
    backend = "gloo" if all(kind.host.cores for kind in cluster.kinds) else "nccl"
    size = request.bucket_bytes or bucket_bytes(0, cluster.num_nodes, backend)
    work = work_of(costs, profile.update, candidate, size)
    found = cells(cluster, candidate.shape, candidate.node_order)
    seconds = [sum(p.forward_s + p.backward_s for p in stage.passes) for stage in work.stages]
    num_microbatches = divided_up(request.batch_size, candidate.samples)
    crossings = _crossings(found, candidate)
    if candidate.schedule == "eager-1f1b" and not crossings:
        crossings = frozenset(range(candidate.shape.num_stages - 1))
    return Setting(
        cluster=cluster,
        loads=tuple(loads(found, num_microbatches, seconds, candidate.shape)),
        pipeline=Pipeline(
            shape=candidate.shape,
            schedule=candidate.schedule,
            chunks_per_stage=candidate.chunks,
            slow_links=crossings,
        ),
        work=work,
        scheme=candidate.sync,
        exchange=request.exchange,
        fixed_s=profile.update.step_s,
    )


def _crossings(found: Iterable[Cell], candidate: Candidate) -> frozenset[int]:
    """As `Topology.node_crossings`."""
    widths = candidate.shape.widths
    starts = list(accumulate(widths, initial=0))
    crossing: set[int] = set()
    for cell in found:
        for bundle in cell.bundles:
            if bundle[0] == bundle[-1]:
                continue
            for stage in range(len(widths) - 1):
                if len(set(bundle[starts[stage] : starts[stage + 2]])) > 1:
                    crossing.add(stage)
    return frozenset(crossing)


def _shorter(setting: Setting, share: float) -> Setting:
    """The same with fewer micro-batches."""
    loads = [
        replace(load, microbatches=tuple(max(1, round(share * n)) for n in load.microbatches))
        for load in setting.loads
    ]
    return replace(setting, loads=tuple(loads))


def _loading_s(setting: Setting, samples: int, profile: Profile) -> float:
    """Seconds in which the loading processes of a node have the samples of a step."""
    width = setting.pipeline.shape.widths[0]
    found = [0.0]
    for load in setting.loads:
        read = [0.0] * len(load.cell.nodes)
        for bundle, number in zip(load.cell.bundles, load.microbatches, strict=True):
            for node in bundle[:width]:
                read[node] += number * samples / width
        for kind, num_samples in zip(load.cell.nodes, read, strict=True):
            if kind.loaders:
                found.append(num_samples * profile.update.load_s / kind.loaders)
    return max(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Foreseen:
    """As in `Forecast`."""

    terms: dict[Term, float]
    idle: float
    egress_bytes: float
    exchange_s: float

    @property
    def step_s(self) -> float:
        return sum(self.terms.values())

    @classmethod
    def of(cls, setting: Setting) -> _Foreseen:
        whole = play(setting)
        alone = play(setting, has_free_sums=True)
        bare = play(setting.without_links, has_free_sums=True)
        work_s = bare.busy_s + bare.update_s + setting.fixed_s
        bubble_s = max(0.0, bare.step_s - work_s)
        links_s = max(0.0, alone.step_s - bare.step_s)
        terms = {
            Term.COMPUTE: bare.busy_s,
            Term.BUBBLE: bubble_s,
            Term.LINKS: links_s,
            Term.EXCHANGE: max(0.0, whole.step_s - bubble_s - links_s - work_s),
            Term.UPDATE: bare.update_s,
            Term.OTHER: setting.fixed_s,
        }
        step_s = sum(terms.values())
        return cls(
            terms=terms,
            idle=1 - (1 - whole.idle) * whole.step_s / step_s if step_s else 0.0,
            egress_bytes=whole.egress_bytes,
            exchange_s=whole.exchange_s,
        )

    def on_line(self, other: _Foreseen, times: float) -> _Foreseen:
        """What lies so many times as far from this one as the other does."""

        def on(a: float, b: float) -> float:
            return max(0.0, a + times * (b - a))

        terms = {term: on(a, other.terms[term]) for term, a in self.terms.items()}
        before, after = (each.step_s * (1 - each.idle) for each in (self, other))
        step_s = sum(terms.values())
        return _Foreseen(
            terms=terms,
            idle=max(0.0, 1 - on(before, after) / step_s) if step_s else 0.0,
            egress_bytes=on(self.egress_bytes, other.egress_bytes),
            exchange_s=on(self.exchange_s, other.exchange_s),
        )
