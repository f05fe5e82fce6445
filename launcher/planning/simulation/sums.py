"""What the ranks that hold the same gradients do to sum them, leg by leg, bucket by bucket.

collect      |b0|b1|b2|                 on each node, one after the other
exchange        |--b0--|--b1--|         between nodes, two under way at once
distribute             |b0|    |b1|     on each node
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bundlerun.launcher.planning.picture.gantt import Kind
from bundlerun.launcher.planning.simulation.events import Clock, Done
from bundlerun.launcher.planning.simulation.passes import Node, Rank, joined
from bundlerun.launcher.planning.simulation.work import Bucket

_BEGUN_AHEAD = 2
"""Buckets that a leg has under way."""


@dataclass(slots=True, kw_only=True)
class Leg:
    """Takes buckets in one order.

    Args:
        begin: starts one, and calls what it is given at its end.
        most: under way at once.
    """

    begin: Callable[[int, Done], None]
    most: int
    _waiting: deque[tuple[int, Done]] = field(default_factory=deque)
    _num_begun: int = 0

    def take(self, bucket: int, done: Done) -> None:
        """Does its part for a bucket when it is its turn."""
        self._waiting.append((bucket, done))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._num_begun < self.most:
            bucket, done = self._waiting.popleft()
            self._num_begun += 1

            def ended(done: Done = done) -> None:
                self._num_begun -= 1
                done()
                self._go_on()

            self.begin(bucket, ended)


@dataclass(slots=True, kw_only=True)
class Part:
    """What a node has of a group.

    Args:
        node: it.
        ranks: on it, each standing for some.
        sent_share: of a bucket's bytes, what it sends to other nodes.
        bytes_per_s: of its way to the next node.
        num_leaders: ranks of the node that exchange, each its part.
    """

    node: Node
    ranks: list[Rank]
    sent_share: float
    bytes_per_s: float
    num_leaders: int

    @property
    def num_ranks(self) -> int:
        """On each such node."""
        return sum(rank.count for rank in self.ranks)


@dataclass(slots=True, kw_only=True)
class Plan:
    """How a group sums.

    Args:
        is_flat: one all-reduce over all ranks; else up to leaders, across, and down.
        latency_s: of the exchange of one bucket.
        added_share: of a bucket's bytes, what each node adds up in the exchange.
    """

    is_flat: bool
    latency_s: float
    added_share: float


class Group:
    """Ranks that hold the same gradients.

    Args:
        clock: of all.
        parts: of the nodes.
        buckets: in order.
        plan: how.
    """

    def __init__(
        self, clock: Clock, parts: Sequence[Part], buckets: Sequence[Bucket], plan: Plan
    ) -> None:
        self._clock, self._plan = clock, plan
        self.parts, self.buckets = parts, buckets
        self.noted: dict[tuple[Kind, int, int], tuple[float, float]] | None = None
        """By leg, part and bucket, when it was under way in the last step; None: not noted."""
        self._ready: dict[tuple[int, int, int], int] = {}
        self._collected: dict[tuple[int, int], int] = {}
        self._back: dict[tuple[int, int], int] = {}
        self._part_of = {id(rank): i for i, part in enumerate(parts) for rank in part.ranks}
        numbered = list(enumerate(parts))
        self._collect = [Leg(begin=self._collecting(i, part), most=1) for i, part in numbered]
        self._exchange = Leg(begin=self._exchanging, most=_BEGUN_AHEAD)
        self._distribute = [Leg(begin=self._distributing(i, part), most=1) for i, part in numbered]
        self._num_exchanging, self._since = 0, 0.0
        self.exchange_s = 0.0
        """In which at least one bucket was between nodes."""

    def ready(self, rank: Rank, step: int, bucket: int) -> None:
        """A rank has its gradients of a bucket."""
        number = self._part_of[id(rank)]
        key = step, bucket, number
        self._ready[key] = self._ready.get(key, 0) + 1
        if self._ready[key] == len(self.parts[number].ranks):
            del self._ready[key]
            self._collect[number].take(bucket, lambda: self._is_collected(step, bucket))

    def _is_collected(self, step: int, bucket: int) -> None:
        key = step, bucket
        self._collected[key] = self._collected.get(key, 0) + 1
        if self._collected[key] == len(self.parts):
            del self._collected[key]
            self._exchange.take(bucket, lambda: self._is_exchanged(step, bucket))

    def _is_exchanged(self, step: int, bucket: int) -> None:
        for number in range(len(self.parts)):
            self._distribute[number].take(bucket, lambda number=number: self._is_back(step, number))  # type: ignore[misc]

    def _is_back(self, step: int, number: int) -> None:
        key = step, number
        self._back[key] = self._back.get(key, 0) + 1
        if self._back[key] == len(self.buckets):
            del self._back[key]
            for rank in self.parts[number].ranks:
                rank.sums_done()

    def _noting(self, leg: Kind, part: int, bucket: int, done: Done) -> Done:
        noted, begun_s = self.noted, self._clock.now
        if noted is None:
            return done

        def ended() -> None:
            noted[leg, part, bucket] = begun_s, self._clock.now
            done()

        return ended

    def _collecting(self, number: int, part: Part) -> Callable[[int, Done], None]:
        def begin(bucket: int, done: Done) -> None:
            if self._plan.is_flat or part.num_ranks == 1:
                done()
                return
            num_bytes = self.buckets[bucket].num_bytes * part.num_ranks / part.num_leaders
            ended = self._noting(Kind.COLLECT, number, bucket, done)
            self._inside(part, num_bytes, part.num_leaders, ended)

        return begin

    def _distributing(self, number: int, part: Part) -> Callable[[int, Done], None]:
        def begin(bucket: int, done: Done) -> None:
            if self._plan.is_flat or part.num_ranks == 1:
                done()
                return
            ended = self._noting(Kind.DISTRIBUTE, number, bucket, done)
            self._inside(part, self.buckets[bucket].num_bytes, part.num_ranks, ended)

        return begin

    def _inside(self, part: Part, num_bytes: float, num_ranks: int, done: Done) -> None:
        """So many bytes go through each of some ranks of a node at once."""
        node = part.node
        if not node.is_shared:
            self._clock.after(node.kind.inside.seconds(num_bytes), done)
            return
        join = joined(num_ranks, done)
        for _ in range(num_ranks):
            node.processor.start(num_bytes * node.kind.host.copy_s_per_byte, join, 1.0)

    def _exchanging(self, bucket: int, done: Done) -> None:
        self._begin_exchange()
        of, begun_s = self.buckets[bucket], self._clock.now

        def ended() -> None:
            if self.noted is not None:
                span = begun_s, self._clock.now
                self.noted |= {(Kind.EXCHANGE, i, bucket): span for i, _ in enumerate(self.parts)}
            self._end_exchange()
            done()

        join = joined(
            len(self.parts), lambda: self._clock.after(of.count * self._plan.latency_s, ended)
        )
        for part in self.parts:
            self._send(part, of.num_bytes, join)

    def _send(self, part: Part, num_bytes: float, done: Done) -> None:
        node, sent = part.node, num_bytes * part.sent_share
        node.sent_bytes += sent
        if not node.is_shared:
            is_ring = self._plan.is_flat and part.num_ranks > 1
            join = joined(1 + is_ring, done)
            node.egress.start(sent, join, part.bytes_per_s)
            if is_ring:
                # The pieces go around inside of the node, too, at the same time.
                rate = node.kind.inside.bytes_per_s
                node.ring.start(num_bytes * self._plan.added_share, join, rate)
            return
        host = node.kind.host
        count = part.num_ranks if self._plan.is_flat else part.num_leaders
        join = joined(1 + count, done)
        node.egress.start(sent, join, part.bytes_per_s)
        # Both to send and to receive, and to add.
        through = (
            num_bytes * self._plan.added_share / (1 if self._plan.is_flat else part.num_leaders)
        )
        seconds = 2 * through * host.send_s_per_byte + through * host.copy_s_per_byte
        for _ in range(count):
            node.processor.start(seconds, join, 1.0)

    def _begin_exchange(self) -> None:
        if not self._num_exchanging:
            self._since = self._clock.now
        self._num_exchanging += 1

    def _end_exchange(self) -> None:
        self._num_exchanging -= 1
        if not self._num_exchanging:
            self.exchange_s += self._clock.now - self._since
