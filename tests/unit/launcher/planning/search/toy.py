"""A small exact model of a step and of memory, all plans there are, and requests at random."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, islice, permutations
from math import inf

from bundlerun.launcher.choices import ScheduleName, SchemeName
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.timeline import Costs, max_in_flight, simulate
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.candidate import Candidate, Forecast, RankMemory, Request, Term
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    SharedParameters,
    UpdateCosts,
)

Ranks = tuple[tuple[str, int], ...]
"""Of a bundle: the kind of each rank's node, and its number after that of the first rank."""
SCHEMES: dict[SchemeName, float] = {"local-master": 1.1, "sharded": 1.0, "flat": 1.3}
"""How much of a link's time the sums take, over the least."""


@dataclass(kw_only=True)
class Toy:
    """A model, nodes and a request."""

    profile: Profile
    cluster: Cluster
    request: Request
    num_foreseen: int = 0
    _costs: dict[int, ModelCosts] = field(default_factory=dict)
    _layouts: dict[object, Topology] = field(default_factory=dict)
    _shares: dict[Candidate, list[tuple[Ranks, int]]] = field(default_factory=dict)
    _times: dict[object, tuple[float, list[tuple[float, float]]]] = field(default_factory=dict)

    @cached_property
    def by_node(self) -> list[NodeKind]:
        return [kind for kind in self.cluster.kinds for _ in range(kind.count)]

    def costs(self, samples: int) -> ModelCosts:
        if samples not in self._costs:
            self._costs[samples] = self.profile.at(samples)
        return self._costs[samples]

    def nodes(self, plan: Candidate) -> list[NodeKind]:
        order = plan.node_order or range(len(self.by_node))
        return [self.by_node[number] for number in order]

    @cached_property
    def kinds(self) -> dict[str, NodeKind]:
        return {kind.name: kind for kind in self.cluster.kinds}

    def topology(self, plan: Candidate) -> Topology:
        key = plan.shape, plan.node_order, plan.chunks
        if key not in self._layouts:
            self._layouts[key] = self._laid_out(plan)
        return self._layouts[key]

    def _laid_out(self, plan: Candidate) -> Topology:
        devices = [plan.shape.usable_devices(kind.devices) for kind in self.nodes(plan)]
        return Topology(plan.shape, tuple(devices), plan.chunks)

    def shares(self, plan: Candidate) -> list[tuple[Ranks, int]]:
        """Per bundle: its ranks, its micro-batches."""
        key = replace(plan, sync="flat")
        if key not in self._shares:
            self._shares[key] = self._shared_out(plan)
        return self._shares[key]

    def _shared_out(self, plan: Candidate) -> list[tuple[Ranks, int]]:
        topology, nodes = self.topology(plan), self.nodes(plan)
        bundles = [
            tuple(
                (
                    nodes[topology.places[r].node].name,
                    topology.places[r].node - topology.places[b[0]].node,
                )
                for r in b
            )
            for b in topology.bundles
        ]
        counts = [0] * len(bundles)
        for _ in range(self.request.batch_size // plan.samples):
            times = [self.passes(plan, b, n + 1)[0] for b, n in zip(bundles, counts, strict=True)]
            counts[times.index(min(times))] += 1
        return list(zip(bundles, counts, strict=True))

    def passes(
        self, plan: Candidate, bundle: Ranks, share: int
    ) -> tuple[float, list[tuple[float, float]]]:
        """Duration, and per stage the start and end of its last pass."""
        key = (
            plan.shape,
            plan.cuts,
            plan.schedule,
            plan.samples,
            plan.chunks,
            plan.recompute,
            bundle,
            share,
        )
        if key not in self._times:
            self._times[key] = self._simulated(plan, bundle, share)
        return self._times[key]

    def _simulated(
        self, plan: Candidate, bundle: Ranks, share: int
    ) -> tuple[float, list[tuple[float, float]]]:
        costs = self.costs(plan.samples)
        parts, stages = costs.parts(plan.cuts), plan.shape.num_stages
        position, per_stage = 0, []
        for width in plan.shape.widths:
            per_stage.append(bundle[position : position + width])
            position += width
        # A stage is as fast as its slowest device.
        speeds = [min(self.kinds[name].speed for name, _ in ranks) for ranks in per_stage]
        forward, backward, weight, transfer = [], [], [], []
        for chunk, part in enumerate(parts):
            stage = chunk % stages
            again = part.forward_s if stage in plan.recompute else 0.0
            loss = costs.loss_s if chunk == len(parts) - 1 else 0.0
            forward.append(part.forward_s / speeds[stage])
            backward.append((part.backward_s + again + loss) / speeds[stage])
            weight.append(part.weight_s / speeds[stage])
            if chunk < len(parts) - 1:
                there = (chunk + 1) % stages
                nodes = {node for _, node in (*per_stage[stage], *per_stage[there])}
                link = self.cluster.between if len(nodes) > 1 else self.kinds[bundle[0][0]].inside
                transfer.append(link.seconds(costs.boundaries[plan.cuts[chunk]].forward_bytes))
        timeline = simulate(
            self.pipeline(plan).bundle(share),
            Costs(forward=forward, backward=backward, weight=weight, transfer=[*transfer, 0.0]),
        )
        assert timeline is not None
        last = [(0.0, 0.0)] * stages
        for (stage, _), spans in timeline.spans.items():
            if spans:
                last[stage] = max(last[stage], (spans[-1].start, spans[-1].end))
        return timeline.duration, last

    def pipeline(self, plan: Candidate) -> Pipeline:
        found = Pipeline.of(self.topology(plan), plan.schedule)
        return found

    def foresee(self, plan: Candidate) -> Forecast:
        self.num_foreseen += 1
        topology, costs = self.topology(plan), self.costs(plan.samples)
        update, parts = self.profile.update, costs.parts(plan.cuts)
        begin = [(0.0, 0.0)] * plan.shape.num_stages
        longest = 0.0
        for bundle, share in self.shares(plan):
            if share:
                duration, last = self.passes(plan, bundle, share)
                longest = max(longest, duration)
                begin = [max(a, b) for a, b in zip(begin, last, strict=True)]
        link_free, exchange = 0.0, 0.0
        for stage in sorted(range(plan.shape.num_stages), key=lambda s: begin[s]):
            trained = sum(p.trained_bytes for p in parts[stage :: plan.shape.num_stages])
            done = begin[stage][1]
            nodes = len(topology.exchange_groups[stage])
            if nodes > 1:
                share = 2 * (nodes - 1) / nodes * SCHEMES[plan.sync]
                takes = share * trained / self.cluster.between.bytes_per_s
                exchange += takes
                link_free = max(link_free, begin[stage][0]) + takes
                done = max(done, link_free)
            longest = max(longest, done + update.update_s_per_byte * trained)
        step_s = longest + update.step_s
        return Forecast(
            step_s=step_s,
            terms={Term.COMPUTE: step_s},
            bubble=0.0,
            egress_bytes=0,
            exchange_s=exchange,
            memory=(),
        )

    def memory(self, plan: Candidate) -> tuple[RankMemory, ...]:
        costs = self.costs(plan.samples)
        parts = costs.parts(plan.cuts)
        share = max(share for _, share in self.shares(plan))
        pipeline = self.pipeline(plan)
        found = []
        for stage in range(plan.shape.num_stages):
            mine = parts[stage :: plan.shape.num_stages]
            held = max(
                max_in_flight(pipeline.order(stage, r, share))
                for r in range(plan.shape.widths[stage])
            )
            kept = sum(part.kept_bytes for part in mine)
            if stage in plan.recompute:
                here = plan.cuts[stage - 1] if stage else None
                sent = costs.input_bytes if here is None else costs.boundaries[here].forward_bytes
                activations = held * sent + kept
            else:
                activations = held * kept // plan.chunks
            trained = sum(part.trained_bytes for part in mine)
            found.append(
                RankMemory(
                    parameters=sum(part.parameter_bytes for part in mine),
                    buffers=0,
                    gradients=trained,
                    optimizer=round(trained * self.profile.update.state_share),
                    activations=activations,
                    working=max(part.peak_bytes for part in mine),
                    buckets=0,
                    wires=0,
                    program=0,
                    snapshot=0,
                    loader=0,
                )
            )
        return tuple(found)

    def fits(self, plan: Candidate) -> bool:
        topology, nodes = self.topology(plan), self.nodes(plan)
        memory = self.memory(plan)
        return all(
            place.is_spare or memory[place.stage].device <= (nodes[place.node].device_bytes or inf)
            for place in topology.places
        )

    def all_plans(self) -> Iterator[Candidate]:
        """Every plan of the request."""
        request = self.request
        total = sum(kind.devices for kind in self.by_node)
        boundaries = range(len(self.costs(self.profile.by_samples[0].samples).boundaries))
        chunks = request.chunks or 1
        sizes = (
            [request.samples]
            if request.samples
            else [
                n
                for n in range(8, request.batch_size + 1)
                if request.batch_size % n == 0 and n <= 4 * self.profile.by_samples[-1].samples
            ]
        )
        orders: list[tuple[int, ...]] = [()]
        if request.may_order_nodes:
            seen = {tuple(k.name for k in self.by_node)}
            for order in permutations(range(len(self.by_node))):
                names = tuple(self.by_node[n].name for n in order)
                if names not in seen:
                    seen.add(names)
                    orders.append(order)
        shapes = [request.shape.widths] if request.shape else list(compositions(total))
        for widths in shapes:
            for order in orders:
                shape = Shape(widths)
                try:
                    nodes = [self.by_node[n] for n in order or range(len(self.by_node))]
                    Topology(shape, tuple(shape.usable_devices(k.devices) for k in nodes), 1)
                except ConfigError:
                    continue
                num_cuts = len(widths) * chunks - 1
                if (chunks > 1 and len(widths) == 1) or num_cuts > len(boundaries):
                    continue
                names: Sequence[ScheduleName] = ("gpipe", "1f1b", "eager-1f1b", "zero-bubble")
                if chunks > 1:
                    names = ("interleaved",)
                if request.schedule:
                    names = (request.schedule,)
                for name in names:
                    if name in request.without:
                        continue
                    for cuts in combinations(boundaries, num_cuts):
                        for samples in sizes:
                            for again in self._again(len(widths), name):
                                for sync in [request.sync] if request.sync else SCHEMES:
                                    yield Candidate(
                                        shape=shape,
                                        cuts=cuts,
                                        schedule=name,
                                        sync=sync,
                                        samples=samples,
                                        chunks=chunks,
                                        recompute=again,
                                        node_order=order,
                                    )

    def _again(self, num_stages: int, name: ScheduleName) -> list[frozenset[int]]:
        is_limited = any(kind.device_bytes for kind in self.by_node)
        if num_stages == 1 or name == "zero-bubble" or not is_limited:
            return [frozenset()]
        if self.request.recompute is not None:
            return [self.request.recompute]
        every = range(num_stages)
        return [frozenset(some) for n in range(num_stages + 1) for some in combinations(every, n)]

    def best_by_force(self) -> tuple[float, Candidate | None]:
        """The least time of a step, by trying all plans."""
        best: tuple[float, Candidate | None] = (inf, None)
        for plan in self.all_plans():
            if self.fits(plan):
                step_s = self.foresee(plan).step_s
                if step_s < best[0]:
                    best = step_s, plan
        return best


def compositions(total: int) -> Iterator[tuple[int, ...]]:
    """All rows of whole numbers whose sum is at most `total`."""
    for first in range(1, total + 1):
        yield (first,)
        for rest in compositions(total - first):
            yield (first, *rest)


def toy_of(seed: int, *, most_pieces: int = 8, most_devices: int = 6, most_plans: int = 400) -> Toy:
    """A case at random; the request settles as much as leaves no more than so many plans."""
    rng = random.Random(seed)
    toy = _any_toy(rng, most_pieces, most_devices)
    while sum(1 for _ in islice(toy.all_plans(), most_plans + 1)) > most_plans:
        plans = list(islice(toy.all_plans(), 20_000))
        one = rng.choice(plans)
        settled = rng.choice(["shape", "schedule", "sync", "samples", "order"])
        if settled == "order":
            toy.request = replace(toy.request, may_order_nodes=False)
        else:
            toy.request = replace(toy.request, **{settled: getattr(one, settled)})
        toy = Toy(profile=toy.profile, cluster=toy.cluster, request=toy.request)
    return toy


def _any_toy(rng: random.Random, most_pieces: int, most_devices: int) -> Toy:
    num_pieces = rng.randint(2, most_pieces)
    pieces = []
    for _ in range(num_pieces):
        forward = rng.choice([0.5, 1.0, 1.5, 2.0, rng.uniform(0.1, 3.0)])
        backward = forward * rng.choice([1.0, 2.0, 2.0, rng.uniform(1.0, 3.0)])
        size = rng.randint(0, 200)
        pieces.append(
            Piece(
                forward_s=forward,
                backward_s=backward,
                weight_s=backward * rng.uniform(0.2, 0.6),
                kept_bytes=rng.randint(0, 100),
                peak_bytes=rng.randint(0, 50),
                parameter_bytes=size,
                trained_bytes=rng.choice([size, size, 0]),
            )
        )
    boundaries = tuple(
        Boundary(
            name=f"b{i}", forward_bytes=rng.randint(1, 100), backward_bytes=rng.randint(1, 100)
        )
        for i in range(num_pieces - 1)
    )
    shared = ()
    if rng.random() < 0.2:
        shared = (SharedParameters(num_bytes=50, pieces=(0, num_pieces - 1)),)
    costs = ModelCosts(
        samples=8,
        pieces=tuple(pieces),
        boundaries=boundaries,
        shared=shared,
        input_bytes=rng.randint(0, 50),
        loss_s=rng.choice([0.0, 0.3]),
    )
    update = UpdateCosts(
        state_share=rng.choice([0.0, 1.0, 2.0]),
        update_s_per_byte=rng.choice([0.0, 0.005]),
        step_s=rng.choice([0.0, 0.2]),
    )
    profile = Profile(
        key=ProfileKey(model="toy", device="toy", versions="1", precision="float32"),
        by_samples=(costs,),
        update=update,
    )
    kinds, left = [], rng.randint(1, most_devices)
    whole = sum(p.kept_bytes + 3 * p.parameter_bytes for p in pieces)
    limit = rng.choice([0, 0, round(whole * rng.uniform(0.4, 2.5))])
    for name in ("a", "b"):
        devices = rng.randint(1, max(1, left))
        count = rng.randint(1, max(1, left // devices))
        if left >= devices * count:
            kinds.append(
                NodeKind(
                    name=name,
                    count=count,
                    devices=devices,
                    speed=rng.choice([1.0, 1.0, 0.5, rng.uniform(0.3, 2.0)]),
                    device_bytes=limit and round(limit * rng.uniform(0.8, 1.2)),
                    inside=Link(bytes_per_s=rng.choice([inf, 1000.0])),
                )
            )
            left -= devices * count
    cluster = Cluster(
        kinds=tuple(kinds),
        between=Link(
            bytes_per_s=rng.choice([30.0, 100.0, 1000.0]), latency_s=rng.choice([0.0, 0.05])
        ),
    )
    chunks = rng.choice([1, 1, 1, 1, 2])
    schedule = rng.choice([None, None, "gpipe", "1f1b", "eager-1f1b", "zero-bubble"])
    request = Request(
        batch_size=rng.choice([16, 32, 48, 64]),
        samples=rng.choice([None, 8, 8]),
        schedule=schedule if chunks == 1 else None,
        sync=rng.choice([None, "local-master"]),
        chunks=chunks,
        may_order_nodes=rng.random() < 0.3,
    )
    return Toy(profile=profile, cluster=cluster, request=request)
