"""Pure: what a run's steps take their time for, from what each rank did in an epoch.

    rank        data | compute | optimizer | ... | waits for others
    critical    ------------ most --------------- | least            what it does bounds the step

A rank that waits little is the one that the others wait for. What it spends its time on is the
bound; where even that one waits for most of the time, it is a link, the exchange or the pipeline.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bundlerun.launcher.why.links import BadLink, bad_link, ways_of
from bundlerun.launcher.why.sums import RankSums, Sent


class Bound(StrEnum):
    """What bounds a step.

    DATA: samples are late. COMPUTE: forwards and backwards of a stage. LINK: messages between two
    nodes. EXCHANGE: sums of gradients. PIPELINE: stages wait for each other, as the step has few
    micro-batches. OPTIMIZER, SNAPSHOT, CHECKPOINT, VALIDATION: as named. REST: what is in no phase.
    """

    DATA = "data"
    COMPUTE = "compute"
    LINK = "link"
    EXCHANGE = "exchange"
    PIPELINE = "pipeline"
    OPTIMIZER = "optimizer"
    SNAPSHOT = "snapshot"
    CHECKPOINT = "checkpoint"
    VALIDATION = "validation"
    REST = "rest"


class SlowBy(StrEnum):
    """Why a rank is slower than its peers.

    PROCESSOR: it is ready to run, and its core has other work. DATA: its samples are late.
    COMPUTE: its forwards and backwards take longer. OPTIMIZER, CHECKPOINT, REST: as named.
    """

    PROCESSOR = "processor"
    DATA = "data"
    COMPUTE = "compute"
    OPTIMIZER = "optimizer"
    REST = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A rank that is slower than the others of its stage.

    Args:
        times: how many times as long it takes as they do.
        share: of the epoch, that it takes longer than they do.
    """

    rank: int
    why: SlowBy
    times: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The way between two nodes that took longest.

    Args:
        bytes_per_s: that it carried while it was busy.
        share: of the epoch in which it was.
    """

    source: str
    to: str
    bytes_per_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What the steps of an epoch took their time for.

    Args:
        bound: of the step.
        share: of the epoch's time that goes into it.
        rank: the critical one.
        stage: its stage.
        slow: a rank that is much slower than its peers; None: none is.
        wire: the busiest between nodes; None: there is none, or nobody measures it.
        link: one between two nodes that loses, is slow or far beside the others; None: none is.
        uneven: of the slowest stage, how many times as long a micro-batch takes it as the fastest.
        starved: share of the time in which ranks were ready and had no core, median.
        microbatch_s: of each stage, what a micro-batch takes one of its ranks.
    """

    bound: Bound
    share: float
    rank: int
    stage: int
    slow: Slow | None = None
    wire: Wire | None = None
    link: BadLink | None = None
    uneven: float = 1.0
    starved: float = 0.0
    microbatch_s: tuple[float, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Pace:
        """Of what JSON has made of it.

        Raises:
            TypeError, KeyError, ValueError: it is something else.
        """
        slow, wire, link = row["slow"], row["wire"], row.get("link")
        return cls(
            **{
                **row,
                "bound": Bound(row["bound"]),
                "slow": None if slow is None else Slow(**{**slow, "why": SlowBy(slow["why"])}),
                "wire": None if wire is None else Wire(**wire),
                "link": None if link is None else BadLink.from_row(link),
                "microbatch_s": tuple(row["microbatch_s"]),
            }
        )


_TIMES = 1.5
"""How much slower than its peers a rank has to be before it is told of."""
_SHARE = 0.10
"""And that much of the time it has to cost: less is noise, and would not pay to mend."""
_STARVED_SHARE = 0.5
_CROWDED = 0.15
"""Share of the time in which peers have no core either, from which on nobody is blamed for it,"""
_FAR_MORE = 4.0
"""unless it is so much longer without one."""
_WIRE_SHARE = 0.5
"""A wait is for a wire that was busy for that much of it."""
_LEAST_STARVED_S = 30.0
"""Over less, who gets a core is chance on a busy machine (measured)."""
_LEAST_S = 2.0
_LEAST_MICROBATCHES = 8
"""Less says nothing."""


def pace_of(ranks: Sequence[RankSums], end: Mapping[str, float] | None = None) -> Pace | None:
    """What the time went for; None where there is too little of it to say.

    Args:
        ranks: all active ones, or those that are known.
        end: seconds of what followed the epoch's steps on the ranks that did it, by phase.
    """
    told = [each for each in ranks if is_telling(each)]
    if not told:
        return None
    critical = min(told, key=lambda each: _waits_s(each) / each.wall_s)
    wire = _wire(told)
    mates = [each for each in told if each.bundle == critical.bundle]
    bound, share = _bound(critical, mates, wire, end or {})
    by_stage = [
        statistics.median(_microbatch_s(each) for each in told if each.stage == stage)
        for stage in sorted({each.stage for each in told})
    ]
    least = min(by_stage)
    return Pace(
        bound=bound,
        share=round(share, 4),
        rank=critical.rank,
        stage=critical.stage,
        slow=slowest(told),
        wire=wire,
        link=bad_link(ways_of(told)),
        uneven=round(max(by_stage) / least, 2) if least > 0 else 1.0,
        starved=round(statistics.median(each.run_delay_s / each.wall_s for each in told), 4),
        microbatch_s=tuple(round(each, 6) for each in by_stage),
    )


def is_telling(rank: RankSums) -> bool:
    """Whether a rank has done enough to say anything."""
    return rank.wall_s >= _LEAST_S and rank.num_microbatches >= _LEAST_MICROBATCHES


def _seconds(rank: RankSums, *phases: str) -> float:
    return sum(rank.seconds.get(phase, 0.0) for phase in phases)


def _waits_s(rank: RankSums) -> float:
    """For other ranks."""
    return _seconds(rank, "receive", "send", "sync_wait", "snapshot_wait")


def _compute_s(rank: RankSums) -> float:
    return _seconds(rank, "forward", "backward")


def _microbatch_s(rank: RankSums) -> float:
    """Of compute, per micro-batch of the bundle."""
    return _compute_s(rank) / max(1, rank.num_microbatches)


def _bound(
    rank: RankSums, mates: Sequence[RankSums], wire: Wire | None, end: Mapping[str, float]
) -> tuple[Bound, float]:
    own = {
        Bound.DATA: _seconds(rank, "data"),
        Bound.COMPUTE: _compute_s(rank),
        Bound.OPTIMIZER: _seconds(rank, "optimizer"),
        Bound.SNAPSHOT: _seconds(rank, "snapshot_wait"),
        Bound.EXCHANGE: _seconds(rank, "sync_wait"),
        Bound.PIPELINE: _seconds(rank, "receive", "send"),
        Bound.CHECKPOINT: _seconds(rank, "checkpoint"),
    }
    own[Bound.REST] = max(0.0, rank.wall_s - sum(own.values()))
    # The exchanges of the stages share a network, and which ends first is chance: the others wait
    # for the messages of the one that ends last, which is still in its exchange.
    longest = rank.wall_s * max(_seconds(mate, "sync_wait") / mate.wall_s for mate in mates)
    behind = min(own[Bound.PIPELINE], max(0.0, longest - own[Bound.EXCHANGE]))
    own[Bound.EXCHANGE] += behind
    own[Bound.PIPELINE] -= behind
    own[Bound.CHECKPOINT] += end.get("checkpoint", 0.0)
    own[Bound.VALIDATION] = end.get("validate", 0.0)
    whole = rank.wall_s + sum(end.values())
    bound = max(own, key=lambda each: own[each])
    share = own[bound] / whole
    if bound is Bound.PIPELINE and wire is not None and wire.share >= _WIRE_SHARE * share:
        bound = Bound.LINK
    return bound, share


def _wire(ranks: Sequence[RankSums]) -> Wire | None:
    """The way between two nodes that was busy for longest."""
    found: dict[tuple[str, str], list[tuple[Sent, float]]] = {}
    for rank in ranks:
        if rank.sent is not None and rank.sent.wire_s > 0:
            key = rank.node_name, rank.sent.to
            found.setdefault(key, []).append((rank.sent, rank.wall_s))
    # Ranks of a node share its wire at one time: the busiest of them tells how long it was busy.
    busy = {key: max(sent.wire_s / wall for sent, wall in each) for key, each in found.items()}
    if not busy:
        return None
    key = max(busy, key=lambda each: busy[each])
    num_bytes = sum(sent.num_bytes for sent, _ in found[key])
    wire_s = max(sent.wire_s for sent, _ in found[key])
    return Wire(
        source=key[0],
        to=key[1],
        bytes_per_s=round(num_bytes / wire_s),
        share=round(min(1.0, busy[key]), 4),
    )


def slowest(ranks: Sequence[RankSums]) -> Slow | None:
    """The rank that costs most by being slower than the others of its stage."""
    found = [
        slow
        for rank in ranks
        for slow in _slow(rank, [other for other in ranks if other is not rank])
    ]
    return max(found, key=lambda slow: slow.share, default=None)


def _slow(rank: RankSums, others: Sequence[RankSums]) -> list[Slow]:
    peers = [other for other in others if other.stage == rank.stage]
    if not peers:
        return []
    parts: dict[SlowBy, Callable[[RankSums], float]] = {
        SlowBy.DATA: lambda each: _seconds(each, "data"),
        SlowBy.COMPUTE: _compute_s,
        SlowBy.OPTIMIZER: lambda each: _seconds(each, "optimizer"),
    }
    found = []
    for why, of in parts.items():
        per = {each.rank: of(each) / each.num_microbatches for each in (rank, *peers)}
        usual = statistics.median(per[peer.rank] for peer in peers)
        excess = (per[rank.rank] - usual) * rank.num_microbatches / rank.wall_s
        # What it takes at least, so that nothing is no number of times as long.
        times = per[rank.rank] / max(usual, 1e-9)
        if excess >= _SHARE and times >= _TIMES:
            found.append((why, times, excess))
    waits = rank.run_delay_s / rank.wall_s
    usual_waits = statistics.median(peer.run_delay_s / peer.wall_s for peer in peers)
    # Those of all stages: of one there may be two ranks, and of these one that has its luck.
    of_others = statistics.median(other.run_delay_s / other.wall_s for other in others)
    is_crowded = max(usual_waits, of_others) >= max(_CROWDED, waits / _FAR_MORE)
    told = []
    for why, times, excess in found:
        # Where that explains most of it.
        is_starved = waits - usual_waits >= _STARVED_SHARE * excess
        # Where all want a core, who gets less of it is chance, and another one in the next epoch.
        is_chance = is_crowded or rank.wall_s < _LEAST_STARVED_S
        if not (is_starved and is_chance):
            told.append(
                Slow(
                    rank=rank.rank,
                    why=SlowBy.PROCESSOR if is_starved else why,
                    times=round(min(times, 999.0), 2),
                    share=round(excess, 4),
                )
            )
    return told
