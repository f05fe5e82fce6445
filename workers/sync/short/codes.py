"""Short forms of float32 numbers, in which they go to other nodes.

    bfloat16   | number | number | ...                                      2 bytes each
    int8       | steps of all blocks, bfloat16 | 128 whole numbers each |   1.016 bytes a number
    int4       | steps of all blocks, bfloat16 |  64 whole numbers each |   0.531 bytes a number
    topk:K     | K numbers of each block, bfloat16 | their places |         3 K / 256

A block of integers has one step: its largest number is 127 steps (int8), or 7 (int4). The first
half of a block of int4 is in the lower halves of the bytes, the second one in the upper halves.

Blocks with a scale each: Dettmers et al., 8-bit optimizers via block-wise quantization, 2022.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from bundlerun.launcher.choices import BLOCK_NUMBERS
from bundlerun.launcher.layout.exchange_form import TOP_BLOCK, ExchangeForm
from bundlerun.launcher.layout.rounding import divided_up, rounded_up

_ALIGNED = 8
"""Pieces begin at multiples, bytes: whatever their numbers are read as."""
_ABOVE = 1 + 2**-8
"""A step is made larger by that before it is rounded itself: no number is too large for it."""
_LEAST = 1e-36
"""Blocks of smaller steps are zeros on their way: one over a step is to be a number."""


class Code(Protocol):
    """A form that numbers can travel in; for one thread."""

    dtype: torch.dtype

    def length(self, count: int) -> int:
        """Elements of `dtype` that so many numbers become."""
        ...

    def write(self, left: Tensor, wire: Tensor) -> None:
        """Moves what `wire` can say out of `left`, which is what is lost then.

        `left` is flat, contiguous float32.
        """
        ...

    def read(self, wire: Tensor, out: Tensor) -> None:
        """What `write` has written, as flat, contiguous float32; the same bits on all nodes."""
        ...


def code_of(form: ExchangeForm) -> Code | None:
    """A code of its own for the caller; None: float32 travels as it is."""
    if form.top:
        return Largest(form.top)
    match form.dtype:
        case "float32":
            return None
        case "bfloat16":
            return Cast(torch.bfloat16)
        case "int8":
            return Whole(bits=8, block=BLOCK_NUMBERS[form.dtype])
        case "int4":
            return Whole(bits=4, block=BLOCK_NUMBERS[form.dtype])


class Scratch:
    """Memory that is used again, as new memory is much slower."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._kept = torch.empty(0, dtype=dtype)

    def like(self, *shape: int) -> Tensor:
        """Of any contents; valid until the next call."""
        count = 1
        for size in shape:
            count *= size
        if self._kept.numel() < count:
            self._kept = torch.empty(count, dtype=self._kept.dtype)
        return self._kept[:count].view(shape)


class Cast:
    """Another type of floating-point numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._scratch = Scratch(torch.float32)

    def length(self, count: int) -> int:
        """See `Code`."""
        return count

    def write(self, left: Tensor, wire: Tensor) -> None:
        """See `Code`."""
        wire.copy_(left)
        if wire.is_cpu:
            # A sum of unlike dtypes takes twice as long.
            left -= self._scratch.like(wire.numel()).copy_(wire)
        else:
            left -= wire

    def read(self, wire: Tensor, out: Tensor) -> None:
        """See `Code`."""
        out.copy_(wire)


class _Blocks(ABC):
    """What forms with blocks have in common: the last one may be short, and is filled with zeros.

    Args:
        block: numbers of a block.
    """

    dtype = torch.uint8

    def __init__(self, block: int) -> None:
        self._block = block

    def write(self, left: Tensor, wire: Tensor) -> None:
        """See `Code`. A block with a number that is not finite arrives as no finite numbers."""
        first, second = self._parts(left.numel(), wire)
        whole, rest = divmod(left.numel(), self._block)
        cut = whole * self._block
        if whole:
            self._write(left[:cut].view(whole, -1), first[:whole], second[:whole])
        if rest:
            padded = torch.zeros(1, self._block)
            padded[0, :rest] = left[cut:]
            self._write(padded, first[whole:], second[whole:])
            left[cut:] = padded[0, :rest]

    def read(self, wire: Tensor, out: Tensor) -> None:
        """See `Code`."""
        first, second = self._parts(out.numel(), wire)
        whole, rest = divmod(out.numel(), self._block)
        cut = whole * self._block
        if whole:
            self._read(first[:whole], second[:whole], out[:cut].view(whole, -1))
        if rest:
            padded = torch.empty(1, self._block)
            self._read(first[whole:], second[whole:], padded)
            out[cut:] = padded[0, :rest]

    @abstractmethod
    def _parts(self, count: int, wire: Tensor) -> tuple[Tensor, Tensor]:
        """Both that a wire has, for so many numbers; each with the blocks as first dimension."""

    @abstractmethod
    def _write(self, left: Tensor, first: Tensor, second: Tensor) -> None:
        """As `write`, of whole blocks of shape (blocks, numbers)."""

    @abstractmethod
    def _read(self, first: Tensor, second: Tensor, out: Tensor) -> None:
        """As `read`, of whole blocks."""


class Whole(_Blocks):
    """Whole numbers of steps; a step for each block.

    Args:
        bits: 8 or 4 for each number.
        block: numbers of a block; even.
    """

    def __init__(self, *, bits: int, block: int) -> None:
        super().__init__(block)
        self._bits = bits
        self._most = 2 ** (bits - 1) - 1
        self._units, self._halves = Scratch(torch.float32), Scratch(torch.int8)
        self._packed = Scratch(torch.float32)

    def length(self, count: int) -> int:
        """See `Code`."""
        blocks = divided_up(count, self._block)
        return rounded_up(blocks * (2 + self._block * self._bits // 8), _ALIGNED)

    def _parts(self, count: int, wire: Tensor) -> tuple[Tensor, Tensor]:
        """Steps, of shape (blocks,), and codes, of shape (blocks, bytes of a block)."""
        blocks = divided_up(count, self._block)
        size = self._block * self._bits // 8
        codes = wire[2 * blocks : (2 + size) * blocks].view(torch.int8)
        return wire[: 2 * blocks].view(torch.bfloat16), codes.view(blocks, size)

    def _write(self, left: Tensor, steps: Tensor, codes: Tensor) -> None:
        # The largest of each block; one that is no number is larger than all.
        top = torch.maximum(left.amax(1), left.amin(1).neg_())  # a norm takes ten times as long
        steps.copy_(top.mul_(_ABOVE / self._most))
        step = steps.float()
        per_step = step.reciprocal().masked_fill_(step < _LEAST, 0.0)
        units = self._units.like(*left.shape)
        torch.mul(left, per_step[:, None], out=units).round_()
        if self._bits == 8:
            codes.copy_(units)
        else:
            low, high = units.tensor_split(2, dim=1)
            packed = self._packed.like(*low.shape)
            # The lower half of a byte has no sign: 1 to 15 there.
            codes.copy_(torch.add(low, high, alpha=16, out=packed).add_(8))
        left.addcmul_(units, step[:, None], value=-1)

    def _read(self, steps: Tensor, codes: Tensor, out: Tensor) -> None:
        step = steps.float()
        if self._bits == 8:
            out.copy_(codes)
        else:
            low, high = out.tensor_split(2, dim=1)
            half = self._halves.like(*codes.shape)
            low.copy_(torch.bitwise_and(codes, 15, out=half)).sub_(8)
            high.copy_(torch.bitwise_right_shift(codes, 4, out=half))
        out.mul_(step[:, None])


class Largest(_Blocks):
    """Of each block of 256 numbers the largest by magnitude; the others arrive as zeros.

    Args:
        count: numbers of a block that travel.
    """

    def __init__(self, count: int) -> None:
        super().__init__(TOP_BLOCK)
        self._count = count

    def length(self, count: int) -> int:
        """See `Code`."""
        blocks = divided_up(count, TOP_BLOCK)
        return rounded_up(3 * self._count * blocks, _ALIGNED)

    def _parts(self, count: int, wire: Tensor) -> tuple[Tensor, Tensor]:
        """Values and their places in the block, both of shape (blocks, count)."""
        blocks = divided_up(count, TOP_BLOCK)
        cut, end = 2 * self._count * blocks, 3 * self._count * blocks
        values = wire[:cut].view(torch.bfloat16).view(blocks, self._count)
        return values, wire[cut:end].view(blocks, self._count)

    def _write(self, left: Tensor, values: Tensor, places: Tensor) -> None:
        chosen = left.abs().topk(self._count, dim=1, sorted=False).indices
        numbers = left.gather(1, chosen)
        values.copy_(numbers)
        places.copy_(chosen)
        left.scatter_(1, chosen, numbers - values.float())

    def _read(self, values: Tensor, places: Tensor, out: Tensor) -> None:
        out.zero_().scatter_(1, places.long(), values.float())
