"""Puts the nodes, ranks, wires and sums of a plan together, and lets some steps go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.schedule import Action, Pass, Pipeline
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.picture.gantt import Gantt, Source
from bundlerun.launcher.planning.simulation.cells import Load
from bundlerun.launcher.planning.simulation.events import Clock, Pool
from bundlerun.launcher.planning.simulation.noted import chosen, lanes
from bundlerun.launcher.planning.simulation.passes import Node, Rank, Sending, Wire
from bundlerun.launcher.planning.simulation.sums import Group, Part, Plan
from bundlerun.launcher.planning.simulation.work import Bucket, Work

NUM_STEPS = 3
"""The first begins with all ranks at once, which later ones do not."""
_MOST_DIRECT_NODES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """All that a step depends on.

    Args:
        cluster: its links.
        loads: its cells, and what each has to do.
        pipeline: the order of passes.
        work: of a bundle.
        scheme: how gradients are summed.
        exchange: the form of gradients between nodes.
        fixed_s: of a step, that depends on nothing.
    """

    cluster: Cluster
    loads: tuple[Load, ...]
    pipeline: Pipeline
    work: Work
    scheme: SchemeName
    exchange: ExchangeForm = EXACT
    fixed_s: float = 0.0

    @property
    def without_links(self) -> Setting:
        """The same where messages and sums take no time."""
        work = replace(
            self.work,
            forward_bytes=(0,) * len(self.work.forward_bytes),
            backward_bytes=(0,) * len(self.work.backward_bytes),
            target_bytes=0,
        )
        return replace(
            self, cluster=_instant(self.cluster), loads=_all_instant(self.loads), work=work
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of it.

    Args:
        step_s: from step to step.
        busy_s: of the rank that works the most, in passes.
        update_s: of that rank.
        idle: the share of all ranks' time in which they are not in a pass.
        egress_bytes: of a node in a step, the node that sends the most.
        exchange_s: per step, of the stage whose exchange takes longest.
    """

    step_s: float
    busy_s: float
    update_s: float
    idle: float
    egress_bytes: float
    exchange_s: float


def _instant(cluster: Cluster) -> Cluster:
    kinds = tuple(map(_instant_kind, cluster.kinds))
    return replace(cluster, kinds=kinds, between=Link(bytes_per_s=float("inf")), pairs={})


def _instant_kind(kind: NodeKind) -> NodeKind:
    inside = replace(kind.inside, bytes_per_s=float("inf"), latency_s=0.0)
    host = replace(kind.host, copy_s_per_byte=0.0, send_s_per_byte=0.0, message_s=0.0)
    return replace(kind, inside=inside, host=host)


def _all_instant(loads: Sequence[Load]) -> tuple[Load, ...]:
    return tuple(
        replace(
            load,
            cell=replace(load.cell, nodes=tuple(map(_instant_kind, load.cell.nodes))),
        )
        for load in loads
    )


def play(setting: Setting, *, has_free_sums: bool = False) -> Played:
    """Lets the steps go by.

    Args:
        setting: of the plan.
        has_free_sums: whether sums take nothing; replicas still wait for each other.
    """
    stage = _Stage(setting)
    stage.add_sums(is_free=has_free_sums)
    return stage.play()


def watch(setting: Setting, *, most_ranks: int) -> Gantt:
    """The last of the steps, as it goes by.

    Args:
        setting: of the plan.
        most_ranks: that are shown: whole bundles, and one at least.
    """
    stage = _Stage(setting, is_watched=True)
    stage.add_sums(is_free=False)
    step_s = stage.play().step_s
    return stage.noted(step_s, most_ranks)


class _Stage:
    """Where all of it happens."""

    def __init__(self, setting: Setting, *, is_watched: bool = False) -> None:
        self._setting, self._is_watched = setting, is_watched
        self._clock = Clock()
        self._nodes: list[Node] = []
        self._ranks: list[Rank] = []
        self._groups: list[Group] = []
        self._bundles: list[list[Rank]] = []
        self._num_messages = 0
        self._orders: dict[tuple[int, int, int], list[Action]] = {}
        self._one_machine: Pool | None = None
        for load in setting.loads:
            # Nodes that have the same cores are looked at one by one.
            alone = setting.cluster.is_one_machine
            for _ in range(load.count if alone else 1):
                self._add_cell(replace(load, count=1) if alone else load)

    # --- nodes, ranks, wires

    def _add_cell(self, load: Load) -> None:
        nodes = [self._node(kind, load.count) for kind in load.cell.nodes]
        bundles = list(zip(load.cell.bundles, load.microbatches, strict=True))
        # In a node whose bundles have nothing in common but sums, equal ones are one.
        if len(nodes) == 1 and not nodes[0].is_shared:
            counts: dict[tuple[tuple[int, ...], int], int] = {}
            for bundle in bundles:
                counts[bundle] = counts.get(bundle, 0) + 1
            for (places, number), count in counts.items():
                self._add_bundle([nodes[i] for i in places], number, count)
            return
        for places, number in bundles:
            self._add_bundle([nodes[i] for i in places], number, 1)

    def _node(self, kind: NodeKind, count: int) -> Node:
        cluster = self._setting.cluster
        rates = [link.bytes_per_s for pair, link in cluster.pairs.items() if kind.name in pair]
        egress = max([cluster.between.bytes_per_s, *rates])
        cores = kind.host.cores or float("inf")
        processor, out, ring = (
            Pool(self._clock, size) for size in (cores, egress, kind.inside.bytes_per_s)
        )
        if cluster.is_one_machine:
            self._one_machine = processor = self._one_machine or processor
        node = Node(kind, count, processor, out, ring)
        self._nodes.append(node)
        return node

    def _order(self, stage: int, replica: int, number: int) -> list[Action]:
        key = stage, replica, number
        if key not in self._orders:
            self._orders[key] = self._setting.pipeline.order(stage, replica, number)
        return self._orders[key]

    def _add_bundle(self, nodes: Sequence[Node], number: int, count: int) -> None:
        setting = self._setting
        chunks = setting.pipeline.chunks
        widths = setting.pipeline.shape.widths
        ranks: dict[tuple[int, int], Rank] = {}
        places = [(s, r) for s, width in enumerate(widths) for r in range(width)]
        for (stage, replica), node in zip(places, nodes, strict=True):
            ranks[stage, replica] = Rank(
                self._clock,
                node,
                setting.work.stages[stage],
                self._order(stage, replica, number),
                stage=stage,
                replica=replica,
                count=count,
                num_steps=NUM_STEPS,
                fixed_s=setting.fixed_s,
                chunk_of=lambda own, stage=stage: chunks.number(stage, own),  # type: ignore[misc]
            )
        self._ranks += ranks.values()
        self._bundles.append(list(ranks.values()))
        self._add_messages(ranks, number)

    def _add_messages(self, ranks: Mapping[tuple[int, int], Rank], number: int) -> None:
        """Who sends what to whom, for each micro-batch of a bundle."""
        setting = self._setting
        chunks, widths = setting.pipeline.chunks, setting.pipeline.shape.widths
        wires: dict[tuple[object, int, int, int], Wire] = {}
        last = chunks.num_chunks - 1

        def rank_of(chunk: int, microbatch: int) -> Rank:
            stage = chunks.stage_of(chunk)
            return ranks[stage, microbatch % widths[stage]]

        def add(
            kind: Pass, microbatch: int, chunk: int, to_chunk: int, num_bytes: float, needs: Pass
        ) -> None:
            source, to = rank_of(chunk, microbatch), rank_of(to_chunk, microbatch)
            key = (kind, chunk, id(source), id(to))
            if key not in wires:
                wires[key] = self._wire(source.node, to.node)
            self._num_messages += 1
            sending = Sending(
                wire=wires[key], to=to, number=self._num_messages, num_bytes=num_bytes
            )
            source.sendings.setdefault((kind, microbatch, chunk), []).append(sending)
            to.needed.setdefault((needs, microbatch, to_chunk), []).append(self._num_messages)

        for microbatch in range(number):
            for chunk in range(last):
                there = chunk + 1
                forward, backward = (
                    setting.work.forward_bytes[chunk],
                    setting.work.backward_bytes[chunk],
                )
                if there == last:
                    # Targets go from the first stage to the last, beside.
                    forward += setting.work.target_bytes
                add(Pass.FORWARD, microbatch, chunk, there, forward, Pass.FORWARD)
                add(Pass.BACKWARD, microbatch, there, chunk, backward, Pass.BACKWARD)

    def _wire(self, source: Node, to: Node) -> Wire:
        inside = source.kind.inside
        link = inside if source is to else self._setting.cluster.link(source.kind, to.kind)
        # The rank copies it itself, see `Rank`.
        rate = float("inf") if source is to and source.is_shared else link.bytes_per_s
        return Wire(
            clock=self._clock,
            source=source,
            to=to,
            bytes_per_s=rate,
            latency_s=link.latency_s,
            noted={} if self._is_watched else None,
        )

    # --- sums

    def add_sums(self, *, is_free: bool) -> None:
        """The groups of all stages, and of what stages share."""
        work = self._setting.work
        for stage, of in enumerate(work.stages):
            group = self._group([stage], of.buckets, is_free=is_free)
            for rank in self._ranks:
                if group is not None and rank.stage == stage:
                    rank.num_groups += 1
                    rank.on_ready = group.ready
        for shared in work.shared:
            group = self._group(shared.stages, shared.buckets, is_free=is_free)
            if group is None:
                continue
            for rank in self._ranks:
                if rank.stage in shared.stages:
                    rank.num_groups += 1
                    rank.on_passes_done.append(_all_ready(group, len(shared.buckets)))

    def _group(
        self, stages: Sequence[int], buckets: Sequence[Bucket], *, is_free: bool
    ) -> Group | None:
        on_node = [
            (node, [r for r in self._ranks if r.node is node and r.stage in stages])
            for node in self._nodes
        ]
        members = [(node, ranks) for node, ranks in on_node if ranks]
        counts = [sum(rank.count for rank in ranks) for _, ranks in members]
        num_nodes = sum(node.count for node, _ in members)
        num_ranks = sum(node.count * n for (node, _), n in zip(members, counts, strict=True))
        if num_ranks == 1 or not buckets:
            return None
        setting = self._setting
        is_flat = setting.scheme == "flat"
        form = EXACT if is_flat else setting.exchange
        is_rounded = not form.is_exact
        num_leaders = min(counts) if setting.scheme == "sharded" else 1
        size = num_ranks if is_flat else num_nodes
        # Two swap; more pass pieces around in a ring, or to each other where rounded.
        ring = 2 * (size - 1) / size if size > 2 or is_flat else float(size - 1)
        sent = 0.0 if num_nodes == 1 else ring * form.share
        latency_s = max(self._latencies(members, num_nodes, is_flat=is_flat))
        is_short = not form.rank and is_rounded and (size <= _MOST_DIRECT_NODES or not form.can_add)
        is_direct = size == 2 or is_short
        hops = (1 if size == 2 else 2) if is_direct else 2 * (size - 1)
        parts = [
            Part(
                node=node,
                ranks=ranks,
                sent_share=sent,
                bytes_per_s=min(self._rates(members, number)),
                num_leaders=num_leaders,
            )
            for number, (node, ranks) in enumerate(members)
        ]
        plan = Plan(
            is_flat=is_flat,
            latency_s=hops * latency_s if size > 1 and not is_free else 0.0,
            added_share=ring if is_flat or num_nodes > 1 else 0.0,
        )
        if is_free:
            buckets = [replace(bucket, num_bytes=0) for bucket in buckets]
        group = Group(self._clock, parts, buckets, plan)
        group.noted = {} if self._is_watched else None
        self._groups.append(group)
        return group

    def _latencies(
        self, members: Sequence[tuple[Node, list[Rank]]], num_nodes: int, *, is_flat: bool
    ) -> Iterator[float]:
        """Of all ways that a bucket goes."""
        yield 0.0
        if is_flat:
            yield from (node.kind.inside.latency_s for node, _ in members)
        if num_nodes > 1:
            kinds = [node.kind for node, _ in members]
            yield (
                self._setting.cluster.link(kinds[0], kinds[0]).latency_s if len(kinds) == 1 else 0.0
            )
            yield from (self._setting.cluster.link(a, b).latency_s for a, b in pairwise(kinds))

    def _rates(self, members: Sequence[tuple[Node, list[Rank]]], number: int) -> Iterator[float]:
        """Of the ways from a node to those next to it in the ring."""
        node = members[number][0]
        after = members[(number + 1) % len(members)][0]
        cluster = self._setting.cluster
        if node.count > 1 or after is node:
            yield cluster.link(node.kind, node.kind).bytes_per_s
        if after is not node:
            yield cluster.link(node.kind, after.kind).bytes_per_s

    # --- time

    def play(self) -> Played:
        """All steps."""
        for rank in self._ranks:
            rank.begin()
        self._clock.run()
        ranks = self._ranks
        ended = [max(rank.recorded.ended[step] for rank in ranks) for step in range(NUM_STEPS)]
        step_s = ended[-1] - ended[-2]
        busiest = max(ranks, key=lambda rank: rank.recorded.passes_s[-1] + rank.update_s)
        weights = [rank.count * rank.node.count for rank in ranks]
        busy = sum(
            weight * rank.recorded.passes_s[-1] for weight, rank in zip(weights, ranks, strict=True)
        )
        return Played(
            step_s=step_s,
            busy_s=busiest.recorded.passes_s[-1],
            update_s=busiest.update_s,
            idle=max(0.0, 1 - busy / (sum(weights) * step_s)) if step_s else 0.0,
            egress_bytes=max(node.sent_bytes for node in self._nodes) / NUM_STEPS,
            exchange_s=max((g.exchange_s for g in self._groups), default=0.0) / NUM_STEPS,
        )

    def noted(self, step_s: float, most_ranks: int) -> Gantt:
        """What went on in the last step; once all have gone by."""
        since_s = max(rank.recorded.ended[-2] for rank in self._ranks)
        shown = chosen(self._bundles, most_ranks)
        return Gantt(
            source=Source.FORECAST,
            lanes=tuple(lanes(shown, self._groups, since_s, self._setting.pipeline.chunks)),
            step=step_s,
            num_microbatches=max(n for load in self._setting.loads for n in load.microbatches),
        )


def _all_ready(group: Group, num_buckets: int) -> Callable[[Rank, int], None]:
    def tell(rank: Rank, step: int) -> None:
        for bucket in range(num_buckets):
            group.ready(rank, step, bucket)

    return tell
