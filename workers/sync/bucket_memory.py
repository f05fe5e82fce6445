"""Where the buckets of a stage are.

gradients on the CPU, ranks of the node share memory     in that memory: nothing is copied
gradients on a GPU, summed by gloo                       pinned, with a copy on the GPU
else                                                     where the gradients are
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device import host_memory
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.groups import Legs
from bundlerun.workers.rank.node_memory import NodeMemory
from bundlerun.workers.sync.bucket import Allocate, Bucket
from bundlerun.workers.sync.node_legs import NUM_CHANNELS, NodeArena
from bundlerun.workers.values.flat import aligned

_SCRATCH_NUMBERS = (1 << 10, 64 << 10)
"""Numbers that a sum outside a step takes at a time: a few, or many where a forward writes to large
state."""


_Content = tuple[Sequence[Parameter], int, int]
"""Of a bucket: its parameters, and the numbers before and after their gradients."""


class BucketMemory:
    """All buckets of one rank.

    Collective: the ranks of `mates`.

    Args:
        cut: the parameters of each bucket, the same on all replicas.
        num_extra: numbers before the first bucket's gradients.
        device: where the gradients are.
        groups: in which the buckets are summed.
        mates: the ranks of the node that may share memory; None: none do.
        num_parts: equal parts that a bucket is cut into.
        has_own_counts: which parameters got no gradient is told in a bucket of its own, the last.
    """

    def __init__(
        self,
        cut: Sequence[Sequence[Parameter]],
        *,
        num_extra: int,
        device: torch.device,
        groups: Legs,
        mates: Group | None,
        num_parts: int = 1,
        has_own_counts: bool = False,
    ) -> None:
        contents = list(_contents(cut, num_extra, has_own_counts=has_own_counts))
        self.arena = _shared_arena(mates, contents)
        shared = None if self.arena is None else self.arena.memory.own
        self._registered = None if shared is None else host_memory.register(shared, device)
        # In this order on every rank: a peer finds a bucket by its place in the memory.
        allocate = _allocate(self.arena, groups, device)

        def made(parameters: Sequence[Parameter], num_extra: int, num_unused: int = 0) -> Bucket:
            return Bucket(parameters, num_extra, device, allocate, num_parts, num_unused)

        self._few, self._many = (made([], count) for count in _SCRATCH_NUMBERS)
        self.buckets = [made(*each) for each in contents]
        """In the order in which they leave."""

    def scratch(self, length: int) -> Bucket:
        """A bucket without gradients, for that many numbers or the first of them."""
        return self._few if length <= self._few.extra.numel() else self._many

    def close(self) -> None:
        """Takes the memory back from the GPU."""
        if self._registered is not None:
            self._registered.end()


def _shared_arena(mates: Group | None, contents: Sequence[_Content]) -> NodeArena | None:
    """Memory that the ranks of the node share; None where there is none, or no use for it."""
    if mates is None or mates.backend == "nccl":
        return None
    # As `Bucket` works its lengths out: 8 bytes a number where there are extra ones.
    sizes = [aligned(8 * length) for length in _SCRATCH_NUMBERS]
    for parameters, *others in contents:
        width = parameters[0].element_size() if parameters and not others[0] else 8
        sizes.append(aligned(width * (sum(p.numel() for p in parameters) + sum(others))))
    # Twice: gradients, and sums.
    memory = NodeMemory.connect(mates, 2 * sum(sizes), num_channels=NUM_CHANNELS)
    if memory is None:
        return None
    return NodeArena(memory, sum(sizes))


def _contents(
    cut: Sequence[Sequence[Parameter]], num_extra: int, *, has_own_counts: bool
) -> Iterator[_Content]:
    """Which parameters got no gradient is known once the last bucket leaves, and rides in that."""
    count = sum(map(len, cut))
    for number, parameters in enumerate(cut):
        has_counts = number == len(cut) - 1 and not has_own_counts
        yield parameters, 0 if number else num_extra, count if has_counts else 0
    if has_own_counts:
        yield [], 0, count


def _allocate(arena: NodeArena | None, groups: Legs, device: torch.device) -> Allocate | None:
    """Gives the buckets' wires; None: they are where the gradients are."""
    if arena is not None:
        return arena.allocate
    uses_gloo = any(group.backend == "gloo" for group in groups.values())
    return _pinned if door.is_gpu(device) and uses_gloo else None


def _pinned(length: int, dtype: torch.dtype) -> Tensor:
    return host_memory.pinned((length,), dtype).zero_()
