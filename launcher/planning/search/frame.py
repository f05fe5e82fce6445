"""A plan without its cuts, and all such frames of a request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from bundlerun.launcher.choices import WITHOUT_EXCHANGE, ScheduleName, SchemeName
from bundlerun.launcher.layout.microbatch import LEAST_SAMPLES, divisors
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.candidate import Candidate, Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.search.teams import (
    Team,
    orders_of,
    runs_of,
    small_topology,
    teams_of,
)

SCHEDULES: tuple[ScheduleName, ...] = ("1f1b", "eager-1f1b", "zero-bubble", "gpipe")
"""For one chunk per stage; of equals the first is taken."""
CHUNKS = (1, 2)
"""Per stage, where the request leaves it open."""
SCHEMES: tuple[SchemeName, ...] = ("local-master", "sharded", "flat")
BEYOND = 4
"""How many times larger than any that were profiled a micro-batch may be."""
MOST_LISTED = 8
"""Devices of a bundle up to which all shapes are looked at: 255."""
MOST_DEVICES = 64
"""Of a bundle; above `MOST_LISTED` all stages are equally wide."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """All of a plan but its cuts, its sums and what is computed again.

    Args:
        shape: devices per stage.
        schedule: the order of passes.
        samples: of a micro-batch.
        total: micro-batches of a step.
        teams: the bundles.
        chunks: per stage.
        node_order: as in `Candidate`.
        crossings: stages whose link to the next one is between nodes, in some bundle.
        exchanged: stages that several nodes hold.
    """

    shape: Shape
    schedule: ScheduleName
    samples: int
    total: int
    teams: tuple[Team, ...]
    chunks: int = 1
    node_order: tuple[int, ...] = ()
    crossings: frozenset[int] = frozenset()
    exchanged: frozenset[int] = frozenset()

    @cached_property
    def pipeline(self) -> Pipeline:
        """The order of passes in a bundle, as a run has it."""
        every = frozenset(range(self.shape.num_stages - 1))
        is_eager = self.schedule == "eager-1f1b" and not self.crossings
        return Pipeline(
            shape=self.shape,
            schedule=self.schedule,
            chunks_per_stage=self.chunks,
            slow_links=every if is_eager else self.crossings,
        )

    @property
    def num_chunks(self) -> int:
        """Of the model."""
        return self.shape.num_stages * self.chunks

    @property
    def can_recompute(self) -> bool:
        """Whether a run takes `--recompute` for it."""
        return self.shape.num_stages > 1 and self.schedule != "zero-bubble"

    def candidate(
        self, cuts: Sequence[int], sync: SchemeName, recompute: frozenset[int] = frozenset()
    ) -> Candidate:
        """The whole plan."""
        return Candidate(
            shape=self.shape,
            cuts=tuple(cuts),
            schedule=self.schedule,
            sync=sync,
            samples=self.samples,
            chunks=self.chunks,
            recompute=recompute,
            node_order=self.node_order,
        )


def sample_sizes(profile: Profile, request: Request) -> list[int]:
    """Samples of a micro-batch that come into question.

    They divide the batch; fewer than `LEAST_SAMPLES` only if the user asks for it.
    """
    if request.samples:
        return [request.samples]
    most = BEYOND * profile.by_samples[-1].samples
    fit = [d for d in divisors(request.batch_size) if d <= most]
    return [d for d in fit if d >= LEAST_SAMPLES] or fit[-1:] or [1]


def shapes_of(cluster: Cluster, request: Request, num_pieces: int) -> Iterator[Shape]:
    """Shapes of which the nodes hold a bundle at least, all stages with a piece at least."""
    if request.shape:
        yield request.shape
        return
    runs = runs_of(cluster)
    total = sum(kind.devices * count for kind, count in runs)
    for size in range(1, min(total, MOST_DEVICES) + 1):
        if not teams_of(runs, Shape((size,))):
            continue
        for widths in _widths(size):
            # One stage of several devices is no better than as many bundles of one, unless it
            # leaves devices out.
            is_same = size > 1 == len(widths) and not any(k.devices % size for k, _ in runs)
            if len(widths) <= num_pieces and not is_same:
                yield Shape(widths)


def _widths(size: int) -> Iterator[tuple[int, ...]]:
    if size > MOST_LISTED:
        yield from ((size // n,) * n for n in range(1, size + 1) if size % n == 0)
        return
    # Each bit says whether a stage ends behind that device.
    for bits in range(2 ** (size - 1)):
        widths, last = [], 0
        for device in range(size):
            if device == size - 1 or bits >> device & 1:
                widths.append(device + 1 - last)
                last = device + 1
        yield tuple(widths)


def frames_of(profile: Profile, cluster: Cluster, request: Request) -> Iterator[Frame]:
    """All of them."""
    num_pieces = len(profile.by_samples[0].pieces)
    sizes = sample_sizes(profile, request)
    for shape in shapes_of(cluster, request, num_pieces):
        for order in _orders(cluster, request, shape):
            runs = runs_of(cluster, order)
            small = small_topology(runs, shape)
            if small is None:
                continue
            teams = tuple(teams_of(runs, shape))
            exchanged = frozenset(s for s, m in enumerate(small.exchange_groups) if len(m) > 1)
            for schedule, chunks in _passes(request, shape, num_pieces):
                for samples in sizes:
                    yield Frame(
                        shape=shape,
                        schedule=schedule,
                        samples=samples,
                        total=request.batch_size // samples,
                        teams=teams,
                        chunks=chunks,
                        node_order=order,
                        crossings=small.node_crossings,
                        exchanged=exchanged,
                    )


def _orders(cluster: Cluster, request: Request, shape: Shape) -> Iterator[tuple[int, ...]]:
    # Nodes that hold whole bundles know nothing of each other's places.
    if request.may_order_nodes and any(kind.devices < shape.size for kind in cluster.kinds):
        yield from orders_of(cluster)
    else:
        yield ()


def _passes(request: Request, shape: Shape, num_pieces: int) -> Iterator[tuple[ScheduleName, int]]:
    """Schedules, with chunks per stage."""
    for chunks in (request.chunks,) if request.chunks else CHUNKS:
        if shape.num_stages * chunks > num_pieces or (chunks > 1 and shape.num_stages == 1):
            continue
        names: tuple[ScheduleName, ...] = SCHEDULES if chunks == 1 else ("interleaved",)
        if shape.num_stages == 1:
            # One stage does forward and backward of one micro-batch after the other in all; with
            # all forwards first it would hold more, and end no earlier.
            names = ("1f1b",)
        if request.schedule:
            is_same = request.schedule in names or shape.num_stages == 1
            names = (request.schedule,) if is_same else ()
        for name in names:
            if name in request.without or (name == "zero-bubble" and request.recompute):
                continue
            yield name, chunks


def schemes_of(request: Request) -> tuple[SchemeName, ...]:
    """Ways to sum gradients that come into question."""
    if request.sync:
        return (request.sync,)
    # What has no leg between nodes cannot send a shorter form there.
    form = request.exchange
    refused = () if form.is_exact else WITHOUT_EXCHANGE
    # A shard of a bucket has only parts of its matrices.
    without = (*refused, "sharded") if form.rank else refused
    return tuple(name for name in SCHEMES if name not in without)
