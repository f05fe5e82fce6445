"""The micro-batches of a rank, the next one on its way to the GPU while this one is worked on.

    compute stream   |forward j|backward j  ...|[3] forward j+1
    side stream          |[2] copy of j+1|
    rank             [1] forward j is started: take j+1 from the loader, start its copy

On the CPU there is nothing to copy: a micro-batch is taken when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.workers.data.samples import Batch
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event
from bundlerun.workers.values.nest import leaves, mapped

_PURPOSE = "data"


class _Copied(NamedTuple):
    batch: Batch
    done: Event


class Ahead:
    """Reads one pass over the samples.

    Args:
        batches: of the loader, in pinned memory where the copies are not to wait.
        device: where the inputs are wanted.
        takes_target: whether the target is wanted there, too; else it stays as the data gave it.
    """

    def __init__(
        self, batches: Iterator[Batch], device: torch.device, *, takes_target: bool
    ) -> None:
        self.batches = batches
        self._device = device
        self._takes_target = takes_target
        self.reads_ahead = door.is_gpu(device)
        """Whether there is anything to `look` for."""
        self._next: _Copied | None = None

    @property
    def is_ahead(self) -> bool:
        """Whether `take` waits for no loader."""
        return self._next is not None

    def take(self) -> Batch:
        """The next one, on the device for the current stream."""
        if not self.reads_ahead:
            return next(self.batches)
        found = self._next or self._copied(next(self.batches))
        self._next = None
        # [3]
        current = door.current_stream(self._device)
        current.wait_event(found.done)
        for leaf in leaves((found.batch.inputs, found.batch.target)):
            if isinstance(leaf.value, Tensor):
                # Its memory is the side stream's, which would reuse it too early.
                door.used_by(leaf.value, current)
        return found.batch

    def look(self) -> None:
        """Starts the copy of the one after it, if there is one; waits for the loader only.

        To be called once the device has been given work that takes longer than a copy.
        """
        if self.reads_ahead and self._next is None:
            # [1]
            batch = next(self.batches, None)
            self._next = None if batch is None else self._copied(batch)

    def _copied(self, batch: Batch) -> _Copied:
        # [2] It waits for nothing that the compute stream has been given.
        with door.on_stream(self._device, _PURPOSE):
            target = mapped(self._there, batch.target) if self._takes_target else batch.target
            copy = batch._replace(inputs=mapped(self._there, batch.inputs), target=target)
            return _Copied(copy, door.mark(self._device))

    def _there(self, tensor: Tensor) -> Tensor:
        return door.placed(tensor, self._device)
