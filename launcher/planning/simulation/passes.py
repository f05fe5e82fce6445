"""What the ranks of a bundle do in which order, and the messages between them.

rank    wait for a message | pass | message leaves | ... | wait for sums | optimizer | next step
wire                              |----- one message after the other ----->
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from bundlerun.launcher.layout.schedule import Action, Pass
from bundlerun.launcher.planning.cluster import NodeKind
from bundlerun.launcher.planning.simulation.events import Clock, Done, Pool
from bundlerun.launcher.planning.simulation.work import StageWork

Key = tuple[Pass, int, int]
"""Kind of a pass, micro-batch, chunk of the model."""


@dataclass(slots=True)
class Node:
    """A node that stands for some that are alike.

    Args:
        kind: of node.
        count: of nodes that it stands for.
        processor: what its ranks share; without limit where they share none.
        egress: what it sends to others.
        ring: what one of its devices sends to the next, in sums over all of them.
    """

    kind: NodeKind
    count: int
    processor: Pool
    egress: Pool
    ring: Pool
    sent_bytes: float = 0.0

    @property
    def is_shared(self) -> bool:
        """Whether sums and messages share the processor, and so do passes unless they are apart."""
        return self.kind.host.cores > 0


@dataclass(slots=True, kw_only=True)
class Wire:
    """Messages from one rank to another, first in, first out.

    Args:
        clock: of all.
        source, to: the nodes.
        bytes_per_s, latency_s: of the way.
    """

    clock: Clock
    source: Node
    to: Node
    bytes_per_s: float
    latency_s: float
    noted: dict[int, tuple[float, float]] | None = None
    """By the number of a message, when it was on its way in the last step; None: not noted."""
    _waiting: deque[tuple[float, int, Done]] = field(default_factory=deque)
    _is_busy: bool = False

    @property
    def is_inside(self) -> bool:
        """Whether both ends are on one node."""
        return self.source is self.to

    def send(self, num_bytes: float, number: int, arrived: Done) -> None:
        """Sends a message when those before it have left."""
        self._waiting.append((num_bytes, number, arrived))
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        self._is_busy = bool(self._waiting)
        if not self._waiting:
            return
        num_bytes, number, arrived = self._waiting.popleft()
        begun_s = self.clock.now

        def left() -> None:
            if self.noted is not None:
                self.noted[number] = begun_s, self.clock.now + self.latency_s
            self.clock.after(self.latency_s, arrived)
            self._next()

        if self.is_inside:
            self.clock.after(num_bytes / self.bytes_per_s, left)
            return
        self.source.sent_bytes += num_bytes
        join = joined(3, left)
        self.source.egress.start(num_bytes, join, self.bytes_per_s)
        for node in (self.source, self.to):
            if node.is_shared:
                node.processor.start(num_bytes * node.kind.host.send_s_per_byte, join, 1.0)
            else:
                join()


def joined(count: int, done: Done) -> Done:
    """Does `done` when it has been called so many times."""
    left = count

    def one() -> None:
        nonlocal left
        left -= 1
        if not left:
            done()

    return one


@dataclass(slots=True, kw_only=True)
class Sending:
    """What follows a pass: a message for another rank.

    Args:
        wire: to it.
        to: that rank.
        number: of the message among all of a step.
        num_bytes: of it.
    """

    wire: Wire
    to: Rank
    number: int
    num_bytes: float


@dataclass(slots=True)
class Recorded:
    """What a rank did in each step."""

    ended: list[float] = field(default_factory=list)
    """When a step of it was done, optimizer and all."""
    passes_s: list[float] = field(default_factory=list)
    """Seconds in passes, of each step."""
    passes_ended: list[float] = field(default_factory=list)
    update_begun: list[float] = field(default_factory=list)
    spans: list[tuple[Action, float, float]] = field(default_factory=list)
    """Of the last step."""
    handed: list[tuple[Action, float, float]] = field(default_factory=list)
    """When it handed over what follows a pass, in the last step."""


class Rank:
    """One rank, or several that do the same.

    Args:
        clock: of all.
        node: where it is.
        work: of its stage.
        order: of its passes in a step.
        stage, replica: its place in the bundle.
        count: of ranks that it stands for, on this node.
        num_steps: that it does.
        fixed_s: of a step, that depends on nothing.
    """

    def __init__(
        self,
        clock: Clock,
        node: Node,
        work: StageWork,
        order: Sequence[Action],
        *,
        stage: int,
        replica: int,
        count: int,
        num_steps: int,
        fixed_s: float,
        chunk_of: Callable[[int], int],
    ) -> None:
        self.node, self.stage, self.replica, self.count = node, stage, replica, count
        self.recorded = Recorded()
        self.sendings: dict[Key, list[Sending]] = {}
        self.needed: dict[Key, list[int]] = {}
        self.on_ready: Callable[[Rank, int, int], None] = lambda rank, step, bucket: None
        self.on_passes_done: list[Callable[[Rank, int], None]] = []
        self.num_groups = 0
        self._clock, self._work, self._order = clock, work, order
        self._num_steps, self.fixed_s, self._chunk_of = num_steps, fixed_s, chunk_of
        self._speed = node.kind.speed
        self._split = {a.key for a in order if a.kind is Pass.WEIGHT}
        last = {a.chunk: i for i, a in enumerate(order) if a.kind is not Pass.FORWARD}
        self._last = {index: chunk for chunk, index in last.items()}
        self._step = self._index = self._num_sums = 0
        self._passes_s = 0.0
        self._arrived: set[tuple[int, int]] = set()
        self._awaited: tuple[int, int] | None = None
        self._needs: list[list[int]] = []
        self._follows: list[list[Sending]] = []
        self._begun_at = 0.0
        self._buckets = {
            chunk: [i for i, b in enumerate(work.buckets) if b.chunk == chunk]
            for chunk in range(len(work.passes))
        }

    @property
    def update_s(self) -> float:
        """Of its optimizer."""
        return self._work.update_s / self._speed

    @property
    def num_passes(self) -> int:
        """Of a step."""
        return len(self._order)

    def begin(self) -> None:
        """Begins the next thing in its order, if what it needs has come."""
        if self._index == len(self._order):
            self._end_passes()
            return
        if self._index == 0:
            self._prepare()
        for number in self._needs[self._index]:
            if (self._step, number) not in self._arrived:
                self._awaited = self._step, number
                return
        self._begun_at = self._clock.now
        self._perform(self._order[self._index])

    def _prepare(self) -> None:
        """Finds once what each pass needs, and what follows it."""
        if self._needs:
            return
        for action in self._order:
            key = action.kind, action.microbatch, self._chunk_of(action.chunk)
            self._needs.append(self.needed.get(key, []))
            self._follows.append(self.sendings.get(key, []))

    def arrive(self, step: int, number: int) -> None:
        """A message is here."""
        self._arrived.add((step, number))
        if self._awaited == (step, number):
            self._awaited = None
            self.begin()

    def _perform(self, action: Action) -> None:
        passes = self._work.passes[action.chunk]
        is_split = action.key in self._split
        if action.kind is Pass.FORWARD:
            seconds = passes.forward_s
        elif action.kind is Pass.WEIGHT:
            seconds = passes.weight_s
        else:
            apart_s = passes.split_s - passes.weight_s
            seconds = passes.backward_s + (apart_s if is_split else 0.0)
        seconds /= self._speed
        if self._index not in self._last:
            self._pass(seconds, lambda: self._finish(action))
            return
        ready = self._ready(action, seconds)

        def part(number: int, done_s: float) -> None:
            if number < len(ready):
                until_s, bucket = ready[number]

                def full() -> None:
                    self.on_ready(self, self._step, bucket)
                    part(number + 1, until_s)

                self._pass(until_s - done_s, full)
            else:
                self._pass(seconds - done_s, lambda: self._finish(action))

        part(0, 0.0)

    def _ready(self, action: Action, seconds: float) -> list[tuple[float, int]]:
        """When in its last pass which bucket of a chunk is full."""
        is_weight = action.kind is Pass.WEIGHT
        found = []
        for number in self._buckets[action.chunk]:
            bucket = self._work.buckets[number]
            share = bucket.after_weights if is_weight else bucket.after
            found.append((share * seconds, number))
        return found

    def _pass(self, seconds: float, done: Done) -> None:
        if self.node.kind.host.passes_apart:
            self._clock.after(seconds, done)
        else:
            self._compute(seconds, done)

    def _compute(self, seconds: float, done: Done) -> None:
        if self.node.is_shared:
            self.node.processor.start(seconds, done, 1.0)
        else:
            self._clock.after(seconds, done)

    def _finish(self, action: Action) -> None:
        follows = self._follows[self._index]
        self._index += 1
        now = self._clock.now
        self._passes_s += now - self._begun_at
        if self._step == self._num_steps - 1:
            self.recorded.spans.append((action, self._begun_at, now))
        host, host_s = self.node.kind.host, 0.0
        for sending in follows:
            host_s += host.message_s
            if self.node.is_shared and sending.wire.is_inside:
                host_s += sending.num_bytes * host.copy_s_per_byte
        if host_s:
            self._compute(host_s, lambda: self._hand_over(action, now, follows))
        else:
            self._send(follows)

    def _hand_over(self, action: Action, since_s: float, follows: Sequence[Sending]) -> None:
        if self._step == self._num_steps - 1:
            self.recorded.handed.append((action, since_s, self._clock.now))
        self._send(follows)

    def _send(self, follows: Sequence[Sending]) -> None:
        for sending in follows:
            number = sending.number
            sending.wire.send(
                sending.num_bytes, number, partial(sending.to.arrive, self._step, number)
            )
        self.begin()

    def _end_passes(self) -> None:
        self.recorded.passes_s.append(self._passes_s)
        self.recorded.passes_ended.append(self._clock.now)
        self._passes_s = 0.0
        if not self._order:
            for bucket in range(len(self._work.buckets)):
                self.on_ready(self, self._step, bucket)
        for tell in self.on_passes_done:
            tell(self, self._step)
        self._num_sums += 1
        self._look()

    def sums_done(self) -> None:
        """All buckets of one of its groups are back."""
        self._num_sums += 1
        self._look()

    def _look(self) -> None:
        # Its own passes, and each of its groups.
        if self._num_sums < 1 + self.num_groups:
            return
        self._num_sums = 0
        self.recorded.update_begun.append(self._clock.now)
        self._compute(self.update_s, lambda: self._clock.after(self.fixed_s, self._end))

    def _end(self) -> None:
        self.recorded.ended.append(self._clock.now)
        self._step, self._index = self._step + 1, 0
        if self._step < self._num_steps:
            self.begin()
