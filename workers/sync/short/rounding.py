"""Shortens what travels between nodes, and keeps what is lost by that for the next step.

    step s       sum 1.2345 + 0      -> sent 1.2344,  remainder 0.0001
    step s+1     sum 0.5000 + 0.0001 -> sent 0.5000,  remainder 0.0001

What was lost is added to the next step's sum (error feedback: Seide et al., 1-bit stochastic
gradient descent, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.short.codes import Code, code_of
from bundlerun.workers.sync.short.owed import Owed, owed_in


class Rounding:
    """Shortens the tensors of one leg, and keeps an error per bucket.

    Args:
        form: of float32 on the wire.
    """

    def __init__(self, form: ExchangeForm) -> None:
        self.code: Code | None = code_of(form)
        self._left: dict[Bucket, Tensor] = {}
        self._begins: dict[Bucket, int] = {}
        """Where in the bucket that begins."""
        self._taken: dict[Bucket, list[tuple[int, Tensor]]] = {}
        """What the first call for a bucket begins with: where in the bucket, and the numbers."""
        self._wires: dict[Bucket, list[Tensor]] = {}
        """The memory of what was sent: used again, as new memory is much slower."""

    @property
    def rounds(self) -> bool:
        """Whether anything is shortened."""
        return self.code is not None

    def kept(self, bucket: Bucket) -> list[Owed]:
        """The errors that the next `sent` of this bucket adds, by parameter; not copied."""
        left = self._left.get(bucket)
        return [] if left is None else [*owed_in(bucket, self._begins[bucket], left)]

    def take_up(self, bucket: Bucket, part: Owed) -> None:
        """Continues from what `kept` gave; call it before the first `sent` of this bucket."""
        begin = bucket.places[part.parameter][0] + part.begin
        self._taken.setdefault(bucket, []).append((begin, part.numbers.clone()))

    def drop(self) -> None:
        """Forgets the errors of all that was sent so far."""
        self._taken.clear()
        for remainder in self._left.values():
            remainder.zero_()

    def code_for(self, bucket: Bucket, tensor: Tensor) -> Code | None:
        """How a tensor of a bucket travels; None: as it is."""
        return self.code if tensor.dtype == torch.float32 and not bucket.is_exact else None

    def sent(self, bucket: Bucket, pieces: Sequence[Tensor], begin: int) -> Sequence[Tensor]:
        """Flat pieces as they travel; the next call for this bucket makes up for what is lost.

        Args:
            bucket: whose numbers they are.
            pieces: which follow each other.
            begin: where in the bucket the first begins.
        """
        sizes = [piece.numel() for piece in pieces]
        code = self.code_for(bucket, pieces[0])
        if code is None:
            self._send_all(bucket, pieces, begin)
            return pieces
        if bucket not in self._left:
            self._make_left(bucket, sum(sizes), begin, pieces[0].device)
        wires = self._wires.get(bucket)
        if wires is None:
            wires = self._wires[bucket] = [
                torch.empty(code.length(size), dtype=code.dtype, device=pieces[0].device)
                for size in sizes
            ]
        # What was lost before goes out with this sum; what is lost now waits for the next one.
        for left, piece, wire in zip(self._left[bucket].split(sizes), pieces, wires, strict=True):
            left += piece
            code.write(left, wire)
        return wires

    def _make_left(self, bucket: Bucket, size: int, begin: int, device: torch.device) -> None:
        left = torch.zeros(size, device=device)
        for first, numbers in self._taken.pop(bucket, ()):
            left[first - begin : first - begin + numbers.numel()] = numbers
        self._left[bucket], self._begins[bucket] = left, begin

    def _send_all(self, bucket: Bucket, pieces: Sequence[Tensor], begin: int) -> None:
        """Adds what was lost before to what travels as it is; nothing is kept then."""
        if bucket in self._taken:
            size = sum(piece.numel() for piece in pieces)
            self._make_left(bucket, size, begin, pieces[0].device)
        left = self._left.get(bucket)
        if left is not None:
            for part, piece in zip(left.split([p.numel() for p in pieces]), pieces, strict=True):
                piece += part
            left.zero_()
