"""The exchange leg: sums of the nodes meet; over the network, so bytes are what counts.

    two nodes          swap: each sends its sum and adds the other's, one step
    more               all-reduce, a ring in torch; two communicators alternate
    more, compressed   scatter: each piece to its owner, who adds;  gather: each owner to all

All of them move 2 S (N-1)/N bytes per node, the least there is (two nodes: S), and leave the same
bits on all nodes. A ring gets nearer to the wire than scatter and gather: 1.03 against 1.10 to 1.4
times the wire's time, with four nodes at 200 Mbit/s. But it would add up rounded numbers.

Compressed, what travels is bfloat16 (`rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch import Tensor

from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.meters import Phase
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.legs import Action, Finish
from bundlerun.workers.sync.rounding import Rounding

Target = Callable[[Bucket], Tensor]
"""The flat tensor of a bucket that this rank exchanges."""

_MOST_DIRECT_NODES = 16
"""Above, a message for each other node gets too short: the ring adds up rounded numbers."""


def exchange_actions(
    target: Target, groups: tuple[Group, ...], compress_to: torch.dtype | None
) -> list[Action]:
    """The legs of an exchange.

    Args:
        target: what of a bucket is exchanged.
        groups: two communicators of the same ranks; one is enough for two ranks.
        compress_to: dtype on the wire for float32; None: as it is.
    """
    first = groups[0]
    if first.size == 2 and first.backend == "gloo":
        return [Swap(target, first, compress_to)]
    is_direct = first.backend == "gloo" and first.size <= _MOST_DIRECT_NODES
    if compress_to is not None and is_direct:
        return [Scatter(target, first, compress_to), Gather(target, groups[1], compress_to)]
    return [AllReduce(target, groups, compress_to)]


class _Buffers:
    """Memory to receive into, used in turn: enough for the buckets that a leg has under way."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = [torch.empty(0, dtype=torch.uint8)] * 3
        self._turn = 0

    def like(self, length: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor, valid until the third call after this."""
        num_bytes = length * dtype.itemsize
        self._turn = (self._turn + 1) % len(self._kept)
        if self._kept[self._turn].numel() < num_bytes:
            self._kept[self._turn] = torch.empty(num_bytes, dtype=torch.uint8)
        return self._kept[self._turn][:num_bytes].view(dtype)


class _Direct:
    """What the exchanges by messages between each two nodes have in common.

    Args:
        target: what of a bucket is exchanged.
        group: the nodes.
        compress_to: dtype on the wire for float32; None: as it is.
    """

    phase: Phase = "exchange"

    def __init__(self, target: Target, group: Group, compress_to: torch.dtype | None) -> None:
        self._target = target
        self._group = group
        self.rounding = Rounding(compress_to)
        self._buffers = _Buffers()
        self._peers = [peer for peer in range(group.size) if peer != group.index]

    def _pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The part of each node."""
        return flat.tensor_split(self._group.size)


class Swap(_Direct):
    """Two nodes: both send, both add."""

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        own = self._target(bucket)
        sent = self.rounding.sent(bucket, own)
        received = self._buffers.like(sent.numel(), sent.dtype)
        (other,) = self._peers
        works = self._group.receive(received, other) + self._group.send(sent, other)

        def finish() -> None:
            for work in works:
                work.wait()
            # Both have to add the same two rounded numbers, or their bits would differ.
            if sent is not own:
                own.copy_(sent)
            own.add_(received.to(own.dtype))  # a + b = b + a, to the bit

        return finish


class Scatter(_Direct):
    """Each node sends every other its piece, and adds up the pieces of its own."""

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        target, index, peers = self._target(bucket), self._group.index, self._peers
        sent = self._pieces(self.rounding.sent(bucket, target))
        own = self._pieces(target)[index]
        flat = self._buffers.like(own.numel() * len(peers), sent[index].dtype)
        received = flat.view(len(peers), -1)
        works = [
            work
            for peer, piece in zip(peers, received, strict=True)
            for work in self._group.receive(piece, peer)
        ]
        works += [work for peer in peers for work in self._group.send(sent[peer], peer)]

        def finish() -> None:
            for work in works:
                work.wait()
            # Its own piece rounded like the others, since error feedback has kept the difference.
            if sent[index].dtype != own.dtype:
                own.copy_(sent[index])
            # In order of nodes, so that the sum does not depend on who adds it up.
            pieces = list(received)
            pieces.insert(index, own.clone())
            own.copy_(pieces[0])
            for piece in pieces[1:]:
                own.add_(piece.to(own.dtype))

        return finish


class Gather(_Direct):
    """Each node sends every other the piece that it has added up."""

    phase: Phase = "gather"

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        target, index, peers = self._target(bucket), self._group.index, self._peers
        pieces = self._pieces(target)
        sent = self.rounding.sent(bucket, pieces[index])
        landing = pieces
        # The owner, too, takes the rounded sum: all nodes have the same bits.
        if self.rounding.is_for(target):
            pieces[index].copy_(sent)
            landing = self._pieces(self._buffers.like(target.numel(), sent.dtype))
        works = [w for peer in peers for w in self._group.receive(landing[peer], peer)]
        works += [w for peer in peers for w in self._group.send(sent, peer)]

        def finish() -> None:
            for work in works:
                work.wait()
            for peer in peers:
                if landing[peer] is not pieces[peer]:
                    pieces[peer].copy_(landing[peer])

        return finish


class AllReduce:
    """An all-reduce of torch's backend; communicators alternate, so that two are under way.

    Args:
        target: what of a bucket is exchanged.
        groups: communicators of the same ranks.
        compress_to: dtype on the wire for float32; None: as it is.
    """

    phase: Phase = "exchange"

    def __init__(
        self, target: Target, groups: Sequence[Group], compress_to: torch.dtype | None
    ) -> None:
        self._target = target
        self._groups = cycle(groups)
        self.rounding = Rounding(compress_to)

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        target = self._target(bucket)
        sent = self.rounding.sent(bucket, target)
        work = next(self._groups).all_reduce(sent)

        def finish() -> None:
            work.wait()
            if sent is not target:
                target.copy_(sent)

        return finish
