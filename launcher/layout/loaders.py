"""Loading processes of the ranks of one node that read data: how many, and on which CPUs.

shape 1,1 on a node of eight cores and two GPUs

    cores 0-3            rank 0, which reads: a thread that trains, one that pins memory
    cores 4-7            rank 1: a thread that trains
    5 of cores 0-7       loading processes of rank 0: the cores that are left
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundlerun.launcher.layout.topology import Place

MOST_LOADERS = 16
"""Of one rank, where nobody says how many: more seldom read faster from one disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCores:
    """The cores of one node, and which of them its ranks are pinned to.

    num_cores: that can be busy at once.
    shares: CPUs by local rank; empty where they are not pinned.
    """

    num_cores: int = 1
    shares: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaders:
    """Loading processes of one rank.

    count: 0: the rank reads by itself, between its steps.
    cpus: what they may run on; empty: as the rank itself.
    """

    count: int = 0
    cpus: tuple[int, ...] = ()


def num_loaders(wanted: int, places: Sequence[Place], num_cores: int, *, has_gpu: bool) -> int:
    """Loading processes of each rank of a node that reads.

    Args:
        wanted: what --loader-workers says; -1 leaves it to the cores.
        places: of all ranks of the node.
        num_cores: of the node.
        has_gpu: the model computes elsewhere; without, it needs the cores itself.
    """
    if wanted >= 0 or not has_gpu:
        return max(0, wanted)
    num_readers = sum(map(reads, places))
    num_busy = sum(not place.is_spare for place in places)
    # Each rank has a thread that trains, and a reader one more that copies to pinned memory.
    free = num_cores - num_busy - num_readers
    # One even if no core is free: else the GPU would wait for each image.
    return max(1, min(free // max(1, num_readers), MOST_LOADERS))


def reads(place: Place) -> bool:
    """Whether a rank reads data: those of the first stage do (I4)."""
    return place.stage == 0


def loaders_of(
    wanted: int, places: Sequence[Place], local_rank: int, cores: NodeCores, *, has_gpu: bool
) -> Loaders:
    """The loading processes of one rank that reads; other arguments as for `num_loaders`."""
    count = num_loaders(wanted, places, cores.num_cores, has_gpu=has_gpu)
    if not has_gpu or not cores.shares or not cores.shares[local_rank]:
        return Loaders(count=count)
    # Its own, and those of ranks that read nothing: they leave all but one to others.
    lent = [place.local_rank for place in places if not reads(place)]
    cpus = {cpu for rank in (local_rank, *lent) for cpu in cores.shares[rank]}
    return Loaders(count=count, cpus=tuple(sorted(cpus)))
