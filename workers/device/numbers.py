"""A few numbers, from the processor to the device and back, without a wait where none is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from bundlerun.workers.device.accelerator import is_on_gpu, mark
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
    return start_read(vectors)()


def start_read(vectors: Sequence[Tensor]) -> Callable[[], list[list[float]]]:
    """Begins to copy flat tensors of one device; gives what waits for their numbers.

    It waits for nothing that the device is given later.
    """
    found = [vector for vector in vectors if len(vector)]
    on_gpu = [vector for vector in found if is_on_gpu(vector)]
    arrived = None
    if on_gpu:
        found = [_under_way(vector) for vector in found]
        arrived = mark(on_gpu[0].device)

    def numbers() -> list[list[float]]:
        if arrived is not None:
            arrived.synchronize()
        together = found[0] if len(found) == 1 else torch.cat(found) if found else torch.zeros(0)
        each = iter(together.tolist())
        return [list(islice(each, len(vector))) for vector in vectors]

    return numbers


def _under_way(vector: Tensor) -> Tensor:
    """Where the numbers of a vector will be, on the processor."""
    return pinned(vector.shape, vector.dtype).copy_(vector, non_blocking=True)
