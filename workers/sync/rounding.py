"""Rounds what travels between nodes, and keeps the rounding error for the next step.

    step s       sum 1.2345 + 0      -> sent 1.2344,  remainder 0.0001
    step s+1     sum 0.5000 + 0.0001 -> sent 0.5000,  remainder 0.0001

What the rounding lost is added to the next step's sum (error feedback: Seide et al., 1-bit
stochastic gradient descent, 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bundlerun.workers.sync.bucket import Bucket


class Rounding:
    """Rounds the tensors of one leg, and keeps an error per bucket.

    Args:
        dtype: on the wire, for float32; None: nothing is rounded.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._kept: dict[Bucket, tuple[Tensor, Tensor]] = {}
        """The error, and the memory of what was sent: used again, as new memory is much slower."""

    @property
    def rounds(self) -> bool:
        """Whether anything is compressed."""
        return self._dtype is not None

    def remainder(self, bucket: Bucket) -> Tensor | None:
        """The flat error that the next `sent` of this bucket adds; None before the first."""
        return self._kept[bucket][0] if bucket in self._kept else None

    def take_up(self, bucket: Bucket, remainder: Tensor) -> None:
        """Continues from what `remainder` gave."""
        self._keep(bucket, remainder.clone())

    def drop(self) -> None:
        """Forgets the errors of all that was sent so far."""
        for remainder, _ in self._kept.values():
            remainder.zero_()

    def _keep(self, bucket: Bucket, remainder: Tensor) -> None:
        self._kept[bucket] = remainder, torch.empty_like(remainder, dtype=self._dtype)

    def is_for(self, tensor: Tensor) -> bool:
        """Whether this tensor is compressed."""
        return self._dtype is not None and tensor.dtype == torch.float32

    def sent(self, bucket: Bucket, tensor: Tensor) -> Tensor:
        """The tensor as it travels; the next call for this bucket makes up for the rounding."""
        if not self.is_for(tensor):
            return tensor
        if bucket not in self._kept:
            self._keep(bucket, torch.zeros_like(tensor))
        # What was lost before goes out with this sum; what is lost now waits for the next one.
        remainder, rounded = self._kept[bucket]
        remainder += tensor
        rounded.copy_(remainder)
        remainder -= rounded.float()  # a sum of unlike dtypes takes twice as long
        return rounded
