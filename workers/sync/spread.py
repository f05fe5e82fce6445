"""What the first of some ranks has, given to all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bundlerun.workers.rank.comm import Group

_COPY_BYTES = 4 << 20
"""A peer that is killed in a longer gloo broadcast can leave the other side waiting (measured)."""


def copy_from_first(groups: Sequence[Group], tensors: Sequence[Tensor]) -> None:
    """Makes `tensors` those of the first rank, in place.

    Collective: all ranks, with tensors of the same shapes and dtypes in one order.

    Args:
        groups: to broadcast in, one after the other; none: there is no other rank.
        tensors: of one device.
    """
    if not groups:
        return
    # Few long messages instead of many short ones; in an order that all replicas have.
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in alike])
        wire = flat if groups[0].backend == "nccl" else flat.cpu()
        for piece in wire.view(torch.uint8).split(_COPY_BYTES):
            for group in groups:
                group.broadcast(piece).wait()
        for tensor, found in zip(alike, wire.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(found.view_as(tensor))
