"""Whether a plan fits its devices and nodes, and what would fit where it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.candidate import Candidate, RankMemory, Request
from bundlerun.launcher.planning.cluster import Cluster, NodeKind
from bundlerun.launcher.planning.memory.ranks import node_total, rank_memory
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.placement import placement


class Room(Enum):
    """Memory that has an end."""

    DEVICE = "a device"
    HOST = "the memory of a node"
    SHM = "/dev/shm of a node"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMemory:
    """What all ranks of a node need.

    Args:
        kind: of the node.
        ranks: that it runs, by stage.
        host: bytes of its memory, /dev/shm included.
        shm: of that, in /dev/shm.
    """

    kind: NodeKind
    ranks: tuple[int, ...]
    host: int
    shm: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Memory that is not enough.

    Args:
        room: which.
        kind: of the node.
        stage: that needs too much; of a node, the one that needs the most of it.
        needed: bytes.
        there: bytes that there are.
    """

    room: Room
    kind: NodeKind
    stage: int
    needed: int
    there: int

    @property
    def over(self) -> int:
        """Bytes too many."""
        return self.needed - self.there


def node_memory(
    ranks: Sequence[RankMemory], candidate: Candidate, cluster: Cluster
) -> list[NodeMemory]:
    """What the nodes of each kind need.

    Args:
        ranks: of each stage, as `rank_memory` gives them.
        candidate: the plan.
        cluster: what it is for.
    """
    found = []
    place = placement(candidate.shape, cluster)
    for kind, counts in zip(cluster.kinds, place.nodes, strict=True):
        shm = sum(count * rank.snapshot for count, rank in zip(counts, ranks, strict=True))
        found.append(
            NodeMemory(
                kind=kind, ranks=counts, host=node_total(ranks, counts, kind, candidate), shm=shm
            )
        )
    return found


def shortfalls(
    ranks: Sequence[RankMemory], candidate: Candidate, cluster: Cluster
) -> list[Shortfall]:
    """What of the cluster is not enough, the worst first; a size of 0 is not known, and enough."""
    found = []
    for node in node_memory(ranks, candidate, cluster):
        kind = node.kind
        here = [stage for stage, count in enumerate(node.ranks) if count]
        if not here:
            continue
        if not kind.host.cores:
            for stage in here:
                found += _short(Room.DEVICE, kind, stage, ranks[stage].device, kind.device_bytes)
        most = max(here, key=lambda s: (node.ranks[s] * _on_host(ranks[s], kind), -s))
        found += _short(Room.HOST, kind, most, node.host, kind.host_bytes)
        most = max(here, key=lambda s: (node.ranks[s] * ranks[s].snapshot, -s))
        found += _short(Room.SHM, kind, most, node.shm, kind.shm_bytes)
    return sorted(found, key=lambda each: -each.over)


def _on_host(rank: RankMemory, kind: NodeKind) -> int:
    return rank.needed(on_host=kind.host.cores > 0)


def _short(room: Room, kind: NodeKind, stage: int, needed: int, there: int) -> list[Shortfall]:
    if not there or needed <= there:
        return []
    return [Shortfall(room=room, kind=kind, stage=stage, needed=needed, there=there)]


def fits(profile: Profile, candidate: Candidate, cluster: Cluster, request: Request) -> bool:
    """Whether a plan fits."""
    if not placement(candidate.shape, cluster).num_bundles:
        return False
    ranks = rank_memory(profile, candidate, cluster, request)
    return not shortfalls(ranks, candidate, cluster)


def largest_samples(
    profile: Profile,
    candidate: Candidate,
    cluster: Cluster,
    request: Request,
    sizes: Iterable[int],
) -> int:
    """The largest of `sizes` of a micro-batch with which a plan fits; 0: with none of them.

    Whether that size pays is for the forecast to say: too few micro-batches leave devices idle.
    """
    for samples in sorted(set(sizes), reverse=True):
        if fits(profile, replace(candidate, samples=samples), cluster, request):
            return samples
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What would fit, each by itself; 0, empty and None: it would not, or cannot be said.

    Args:
        samples: of a micro-batch, the most.
        recompute: stages that compute their activations again.
        shape: of more stages, cut into parts of about equal memory.
    """

    samples: int = 0
    recompute: frozenset[int] = frozenset()
    shape: Shape | None = None

    @property
    def words(self) -> list[str]:
        """As options."""
        found = [f"--microbatch-size {self.samples}"] if self.samples else []
        if self.recompute:
            found.append(f"--recompute {','.join(map(str, sorted(self.recompute)))}")
        return [*found, *([f"--shape {self.shape}"] if self.shape else [])]


def remedies(
    profile: Profile,
    candidate: Candidate,
    cluster: Cluster,
    request: Request,
    sizes: Iterable[int],
) -> Remedies:
    """What to change of a plan that does not fit.

    Args:
        profile, candidate, cluster, request: of the plan.
        sizes: that a micro-batch may have.
    """
    smaller = [size for size in sizes if size < candidate.samples]
    return Remedies(
        samples=largest_samples(profile, candidate, cluster, request, smaller),
        recompute=_recomputing(profile, candidate, cluster, request),
        shape=next(_deeper(profile, candidate, cluster, request), None),
    )


def _recomputing(
    profile: Profile, candidate: Candidate, cluster: Cluster, request: Request
) -> frozenset[int]:
    """Stages from the first on: those have the most in flight."""
    stages = range(candidate.shape.num_stages)
    if len(stages) * candidate.chunks == 1 or candidate.schedule == "zero-bubble":
        return frozenset()
    for end in range(1, len(stages) + 1):
        more = replace(candidate, recompute=candidate.recompute | frozenset(stages[:end]))
        if fits(profile, more, cluster, request):
            return more.recompute
    return frozenset()


def _deeper(
    profile: Profile, candidate: Candidate, cluster: Cluster, request: Request
) -> Iterator[Shape]:
    """Shapes of more stages, one device each, that fit."""
    costs = profile.at(candidate.samples)
    most = min(len(costs.pieces), max(kind.devices for kind in cluster.kinds))
    for count in range(candidate.shape.num_stages + 1, most + 1):
        shape = Shape((1,) * count)
        other = replace(
            candidate,
            shape=shape,
            cuts=equal_cuts(profile, candidate.samples, count),
            chunks=1,
            schedule="1f1b" if candidate.schedule == "interleaved" else candidate.schedule,
            recompute=frozenset(),
        )
        if fits(profile, other, cluster, request):
            yield shape


def equal_cuts(profile: Profile, samples: int, count: int) -> tuple[int, ...]:
    """Boundaries that cut into parts of about equal bytes; a stage before another holds more."""
    costs = profile.at(samples)
    share = profile.update.state_share
    sizes = [p.parameter_bytes + (1 + share) * p.trained_bytes + p.kept_bytes for p in costs.pieces]
    cuts: list[int] = []
    filled = 0.0
    for number, size in enumerate(sizes[:-1]):
        filled += size
        left = len(sizes) - 1 - number
        wanted = count - 1 - len(cuts)
        if wanted and (filled >= sum(sizes) * (len(cuts) + 1) / count or left == wanted):
            cuts.append(number)
    return tuple(cuts)
