"""The ways to sum over the replicas of a stage, each as the legs that one rank performs.

local-master   collect to one rank of the node, exchange, distribute
sharded        the same with several leaders per node, each for a shard of every bucket
flat           one all-reduce over all replicas
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from bundlerun.launcher.choices import SchemeName
from bundlerun.workers.rank.groups import Groups
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.exchange import AllReduce, exchange_actions
from bundlerun.workers.sync.legs import Action
from bundlerun.workers.sync.node_legs import GroupLegs, NodeArena, SharedLegs

SCHEMES: tuple[SchemeName, ...] = get_args(SchemeName)


def whole_wire(bucket: Bucket) -> Tensor:
    """All of a bucket."""
    return bucket.wire


def scheme_actions(
    scheme: SchemeName,
    groups: Groups,
    arena: NodeArena | None,
    num_shards: int,
    compress_to: torch.dtype | None,
) -> list[Action]:
    """What this rank does to each bucket, leg by leg; nothing where it is the only replica.

    Args:
        scheme: how to sum.
        groups: of this rank, made for this scheme.
        arena: the memory that the ranks of the node share, if they do.
        num_shards: leaders per node where the scheme is sharded.
        compress_to: dtype of the exchange for float32; None: as it is.
    """
    if scheme == "flat":
        return [] if groups.flat is None else [AllReduce(whole_wire, [groups.flat], None)]
    num_leaders = num_shards if scheme == "sharded" else 1
    if groups.collect is None or groups.distribute is None:
        return exchange_actions(whole_wire, groups.exchange, compress_to) if groups.exchange else []
    legs: SharedLegs | GroupLegs = (
        GroupLegs(groups.collect, groups.distribute, num_leaders)
        if arena is None
        else SharedLegs(arena, num_leaders)
    )
    across = (
        exchange_actions(legs.target, groups.exchange, compress_to)
        if legs.is_leader and groups.exchange
        else []
    )
    return [legs.collect, *across, legs.distribute]
