"""The exchange leg: sums of the nodes meet; over the network, so bytes are what counts.

    two nodes        swap: each sends its sum and adds the other's, one step
    more             all-reduce, a ring in torch; two communicators alternate
    more, shortened  scatter: each piece to its owner, who adds;  gather: each owner to all

All of them move 2 S (N-1)/N bytes per node, the least there is (two nodes: S), and leave the same
bits on all nodes. A ring gets nearer to the wire than scatter and gather: 1.03 against 1.10 to 1.4
times the wire's time, with four nodes at 200 Mbit/s. But it would add up rounded numbers.

Shortened, what travels is bfloat16, blocks of int8 or int4, or the largest numbers (`codes`); or
matrices of a low rank, which an all-reduce adds up (`low_rank`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.meters import Phase
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.legs import Action, Finish
from bundlerun.workers.sync.short.codes import Scratch
from bundlerun.workers.sync.short.low_rank import low_rank_actions
from bundlerun.workers.sync.short.rounding import Rounding
from bundlerun.workers.sync.target import Target

_MOST_DIRECT_NODES = 16
"""Above, a message for each other node gets too short: the ring adds up rounded numbers."""


def exchange_actions(target: Target, groups: tuple[Group, ...], form: ExchangeForm) -> list[Action]:
    """The legs of an exchange.

    Args:
        target: what of a bucket is exchanged.
        groups: two communicators of the same ranks; one is enough for two ranks.
        form: of float32 on the wire.

    Raises:
        ConfigError: the form is not there for what carries the gradients.
    """
    first = groups[0]
    if first.backend != "gloo" and (form.rank or not form.can_add):
        option = "--exchange-dtype" if form.kind == "all" else "--exchange"
        raise ConfigError(
            f"{option} {form} is not there over {first.backend}; use --exchange-dtype bfloat16"
        )
    if form.rank:
        return low_rank_actions(target, groups, form.rank)
    if first.size == 2 and first.backend == "gloo":
        return [Swap(target, first, form)]
    is_short = first.backend == "gloo" and first.size <= _MOST_DIRECT_NODES
    if not form.is_exact and (is_short or not form.can_add):
        return [Scatter(target, first, form), Gather(target, groups[1], form)]
    return [AllReduce(target, groups, form)]


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
        form: of float32 on the wire.
    """

    phase: Phase = "exchange"

    def __init__(self, target: Target, group: Group, form: ExchangeForm) -> None:
        self._target = target
        self._group = group
        self.rounding = Rounding(form)
        self._buffers, self._read = _Buffers(), Scratch(torch.float32)
        self._peers = [peer for peer in range(group.size) if peer != group.index]

    def _pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The part of each node."""
        return flat.tensor_split(self._group.size)

    def _rooms(self, bucket: Bucket, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
        """Where these pieces of others arrive, as they travel; of one dtype."""
        code = self.rounding.code_for(bucket, pieces[0])
        sizes = [piece.numel() for piece in pieces]
        lengths = sizes if code is None else [code.length(size) for size in sizes]
        dtype = pieces[0].dtype if code is None else code.dtype
        rooms: tuple[Tensor, ...] = self._buffers.like(sum(lengths), dtype).split(lengths)
        return rooms

    def _numbers(self, bucket: Bucket, wire: Tensor, like: Tensor) -> Tensor:
        """What has travelled as numbers; valid until the next call."""
        code = self.rounding.code_for(bucket, like)
        if code is None:
            return wire
        found = self._read.like(like.numel())
        code.read(wire, found)
        return found

    def _take(self, bucket: Bucket, wire: Tensor, out: Tensor) -> None:
        """Writes what has travelled as numbers into `out`."""
        code = self.rounding.code_for(bucket, out)
        if code is not None:
            code.read(wire, out)
        elif wire is not out:
            out.copy_(wire)


class Swap(_Direct):
    """Two nodes: both send, both add."""

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        own = self._target.flat(bucket)
        (sent,) = self.rounding.sent(bucket, [own], self._target.begin(bucket))
        (received,) = self._rooms(bucket, [own])
        (other,) = self._peers
        works = self._group.receive(received, other) + self._group.send(sent, other)

        def finish() -> None:
            for work in works:
                work.wait()
            # Both have to add the same two rounded numbers, or their bits would differ.
            self._take(bucket, sent, own)
            own.add_(self._numbers(bucket, received, own))  # a + b = b + a, to the bit

        return finish


class Scatter(_Direct):
    """Each node sends every other its piece, and adds up the pieces of its own."""

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        index, peers = self._group.index, self._peers
        pieces = self._pieces(self._target.flat(bucket))
        sent = self.rounding.sent(bucket, pieces, self._target.begin(bucket))
        own = pieces[index]
        received = self._rooms(bucket, [own] * len(peers))
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
            self._take(bucket, sent[index], own)
            # In order of nodes, so that the sum does not depend on who adds it up.
            arrived = list(received)
            mine = own.clone() if index else own
            arrived.insert(index, mine)
            for number, piece in enumerate(arrived):
                found = mine if number == index else self._numbers(bucket, piece, own)
                if number:
                    own.add_(found)
                elif found is not own:
                    own.copy_(found)

        return finish


class Gather(_Direct):
    """Each node sends every other the piece that it has added up."""

    phase: Phase = "gather"

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        index, peers = self._group.index, self._peers
        pieces = self._pieces(self._target.flat(bucket))
        before = sum(piece.numel() for piece in pieces[:index])
        begin = self._target.begin(bucket) + before
        (sent,) = self.rounding.sent(bucket, [pieces[index]], begin)
        # The owner, too, takes the rounded sum: all nodes have the same bits.
        self._take(bucket, sent, pieces[index])
        is_short = self.rounding.code_for(bucket, pieces[index]) is not None
        landing = self._rooms(bucket, pieces) if is_short else pieces
        works = [w for peer in peers for w in self._group.receive(landing[peer], peer)]
        works += [w for peer in peers for w in self._group.send(sent, peer)]

        def finish() -> None:
            for work in works:
                work.wait()
            for peer in peers:
                self._take(bucket, landing[peer], pieces[peer])

        return finish


class AllReduce:
    """An all-reduce of torch's backend; communicators alternate, so that two are under way.

    Args:
        target: what of a bucket is exchanged.
        groups: communicators of the same ranks.
        form: of float32 on the wire; one that can be added up.
    """

    phase: Phase = "exchange"

    def __init__(self, target: Target, groups: Sequence[Group], form: ExchangeForm) -> None:
        self._target = target
        self._groups = cycle(groups)
        self.rounding = Rounding(form)

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        target = self._target.flat(bucket)
        (sent,) = self.rounding.sent(bucket, [target], self._target.begin(bucket))
        work = next(self._groups).all_reduce(sent)

        def finish() -> None:
            work.wait()
            if sent is not target:
                target.copy_(sent)

        return finish
