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
    """The numbers of flat tensors of one device, by one copy and one wait for it."""
    found = [vector for vector in vectors if len(vector)]
    together = found[0] if len(found) == 1 else torch.cat([*found]) if found else torch.zeros(0)
    if is_on_gpu(together):
        here = pinned(together.shape, together.dtype)
        here.copy_(together, non_blocking=True)
        finish(together.device)
        together = here
    numbers = iter(together.tolist())
    return [list(islice(numbers, len(vector))) for vector in vectors]
