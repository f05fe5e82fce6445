"""A few numbers, from the processor to the device and back, without a wait where none is needed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from bundlerun.workers.device.accelerator import finish, is_on_gpu
from bundlerun.workers.device.host_memory import pinned


def write(target: Tensor, values: Sequence[float]) -> None:
    """Puts numbers into a flat tensor of that length, without a wait for its device."""
    numbers = torch.tensor(values, dtype=target.dtype)
    if is_on_gpu(target):
        # Of torch's cache, which keeps it until the copy is done.
        numbers = pinned(numbers.shape, numbers.dtype).copy_(numbers)
    target.copy_(numbers, non_blocking=True)


def read(vectors: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of flat tensors of one device, by a copy of each and one wait for it."""
    found = [vector for vector in vectors if len(vector)]
    on_gpu = [vector for vector in found if is_on_gpu(vector)]
    if on_gpu:
        found = [_under_way(vector) for vector in found]
        finish(on_gpu[0].device)
    together = found[0] if len(found) == 1 else torch.cat(found) if found else torch.zeros(0)
    numbers = iter(together.tolist())
    return [list(islice(numbers, len(vector))) for vector in vectors]


def _under_way(vector: Tensor) -> Tensor:
    """Where the numbers of a vector will be, on the processor."""
    return pinned(vector.shape, vector.dtype).copy_(vector, non_blocking=True)
