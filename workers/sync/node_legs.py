"""Collect and distribute: the legs of a sync inside a node, where sums are exact.

A bucket is cut into shards, one for each leader of the node; with one leader that is the local
master. On the CPU the gradients are in memory that all ranks of the node see, so nothing is sent:

    rank      gradients done, [1] rings the leaders ........................ [4] copies shards back
    leader        waits for all bells, [2] adds up its shard, exchanges it, [3] rings all ranks

A leader's sum has memory of its own. It is written again only after all ranks of the node have
rung for the same bucket once more, which they do only after they have copied the sum before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.meters import Phase
from bundlerun.workers.rank.node_memory import NodeMemory
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.legs import Action, Finish
from bundlerun.workers.values.flat import aligned

_COLLECT, _DISTRIBUTE = range(2)
NUM_CHANNELS = 2


def shard_of(flat: Tensor, leader: int, num_leaders: int) -> Tensor:
    """The part of a bucket that one leader of the node adds up; may be empty."""
    return flat.tensor_split(num_leaders)[leader]


def begin_of_shard(flat: Tensor, leader: int, num_leaders: int) -> int:
    """Where that part begins."""
    return sum(part.numel() for part in flat.tensor_split(num_leaders)[:leader])


class NodeArena:
    """The memory of all ranks of one node that hold one stage.

    Args:
        memory: big enough for all buckets, twice; the second half is for sums.
        num_bytes: of one half.
    """

    def __init__(self, memory: NodeMemory, num_bytes: int) -> None:
        self.memory = memory
        self._num_bytes = num_bytes
        self._filled = 0
        self._starts: dict[int, int] = {}

    def allocate(self, length: int, dtype: torch.dtype) -> Tensor:
        """A flat tensor of zeros that the other ranks see.

        Every rank of the node makes the same calls in the same order.
        """
        start = self._filled
        self._filled += aligned(length * dtype.itemsize)
        assert self._filled <= self._num_bytes
        found = _view(self.memory.own, start, length, dtype)
        # Peers find a bucket by where it starts, which is the same in the memory of all.
        self._starts[found.data_ptr()] = start
        return found

    def wire_of(self, bucket: Bucket, peer: int) -> Tensor:
        """A peer's gradients of a bucket, flat."""
        return self._of(bucket, peer, 0)

    def sum_of(self, bucket: Bucket, peer: int) -> Tensor:
        """A leader's sum of a bucket, flat; only its shard is used."""
        return self._of(bucket, peer, self._num_bytes)

    def _of(self, bucket: Bucket, peer: int, offset: int) -> Tensor:
        start = self._starts[bucket.wire.data_ptr()] + offset
        wire = bucket.wire
        return _view(self.memory.memory[peer], start, wire.numel(), wire.dtype)


def _view(memory: Tensor, start: int, length: int, dtype: torch.dtype) -> Tensor:
    return memory[start : start + length * dtype.itemsize].view(dtype)


class SharedLegs:
    """Through shared memory.

    Args:
        arena: where the buckets of all ranks of the node are.
        num_leaders: that many ranks of the node, the first, add up a shard each.
    """

    def __init__(self, arena: NodeArena, num_leaders: int) -> None:
        self.arena = arena
        self.num_leaders = num_leaders
        self.index = arena.memory.index
        self.num_ranks = len(arena.memory.memory)
        self.collect: Action = _SharedCollect(self)
        self.distribute: Action = _SharedDistribute(self)

    @property
    def is_leader(self) -> bool:
        """Whether this rank adds up a shard."""
        return self.index < self.num_leaders

    def peers(self, count: int) -> Iterable[int]:
        """The first `count` ranks of the node without this one."""
        return (peer for peer in range(count) if peer != self.index)

    def flat(self, bucket: Bucket) -> Tensor:
        """The shard of the sum that this rank, a leader, exchanges."""
        return shard_of(self.arena.sum_of(bucket, self.index), self.index, self.num_leaders)

    def begin(self, bucket: Bucket) -> int:
        """Where in the bucket that begins."""
        return begin_of_shard(bucket.wire, self.index, self.num_leaders)


class _SharedCollect:
    phase: Phase = "collect"
    rounding = None

    def __init__(self, legs: SharedLegs) -> None:
        self._legs = legs

    def begin(self, bucket: Bucket) -> Finish:
        legs, memory = self._legs, self._legs.arena.memory
        # [1]
        for leader in legs.peers(legs.num_leaders):
            memory.ring(leader, _COLLECT)
        return (lambda: self._add_up(bucket)) if legs.is_leader else _nothing

    def _add_up(self, bucket: Bucket) -> None:
        legs = self._legs
        for peer in legs.peers(legs.num_ranks):
            legs.arena.memory.wait(peer, _COLLECT)
        # [2] Into memory of its own: other leaders still read the gradients of this rank.
        parts = [
            shard_of(legs.arena.wire_of(bucket, peer), legs.index, legs.num_leaders)
            for peer in range(legs.num_ranks)
        ]
        total = legs.flat(bucket)
        torch.add(parts[0], parts[1], out=total)
        for part in parts[2:]:
            total.add_(part)


class _SharedDistribute:
    phase: Phase = "distribute"
    rounding = None

    def __init__(self, legs: SharedLegs) -> None:
        self._legs = legs

    def begin(self, bucket: Bucket) -> Finish:
        legs = self._legs
        # [3]
        if legs.is_leader:
            for peer in legs.peers(legs.num_ranks):
                legs.arena.memory.ring(peer, _DISTRIBUTE)
        return lambda: self._copy_back(bucket)

    def _copy_back(self, bucket: Bucket) -> None:
        legs = self._legs
        # [4] All leaders', its own included: the sums are not where the gradients are.
        for leader in range(legs.num_leaders):
            if leader != legs.index:
                legs.arena.memory.wait(leader, _DISTRIBUTE)
            total = legs.arena.sum_of(bucket, leader)
            shard = shard_of(bucket.wire, leader, legs.num_leaders)
            shard.copy_(shard_of(total, leader, legs.num_leaders))


class GroupLegs:
    """Through torch's collectives: NCCL, or gloo where memory cannot be shared.

    NCCL sums all shards at once where every rank of the node leads one, and parts are equal.

    Args:
        collect: the ranks of the node that hold the stage.
        distribute: the same ranks once more, if both legs run at one time.
        num_leaders: that many ranks of the node, the first, add up a shard each.
    """

    def __init__(self, collect: Group, distribute: Group, num_leaders: int) -> None:
        self._index = collect.index
        self._num_leaders = num_leaders
        if collect.backend == "nccl" and num_leaders == collect.size:
            self.collect: Action = _AtOnce("collect", collect.reduce_scatter)
            self.distribute: Action = _AtOnce("distribute", distribute.gather_parts)
        else:
            self.collect = _PerShard("collect", collect.reduce, num_leaders)
            self.distribute = _PerShard("distribute", distribute.broadcast, num_leaders)

    def flat(self, bucket: Bucket) -> Tensor:
        """The shard of the sum that this rank, a leader, exchanges."""
        return shard_of(bucket.wire, self._index, self._num_leaders)

    def begin(self, bucket: Bucket) -> int:
        """Where in the bucket that begins."""
        return begin_of_shard(bucket.wire, self._index, self._num_leaders)


class _PerShard:
    rounding = None

    def __init__(
        self, phase: Phase, operation: Callable[[Tensor, int], Work], num_leaders: int
    ) -> None:
        self.phase: Phase = phase
        self._operation = operation
        self._num_leaders = num_leaders

    def begin(self, bucket: Bucket) -> Finish:
        shards = bucket.wire.tensor_split(self._num_leaders)
        # Short buckets have empty shards, on all ranks the same ones.
        works = [
            self._operation(shard, leader) for leader, shard in enumerate(shards) if shard.numel()
        ]

        def finish() -> None:
            for work in works:
                work.wait()

        return finish


class _AtOnce:
    rounding = None

    def __init__(self, phase: Phase, operation: Callable[[Tensor], Work]) -> None:
        self.phase: Phase = phase
        self._operation = operation

    def begin(self, bucket: Bucket) -> Finish:
        return self._operation(bucket.wire).wait


def _nothing() -> None:
    """What is left to do for a rank that leads nothing."""
