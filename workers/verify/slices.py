"""What of the state is looked at in which step, and what its bits come to.

    step       0         1         2         3
    slice  |-- 0 --|-- 1 --|-- 2 --|-- 0 --|     of all tensors, one after the other, as bytes

A slice is some parts of tensors. Its bytes are summed in rows of 512 words of 8 bytes, so that two
elements that change places are seen, too; a bit that flips always changes a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.rounding import rounded_up
from bundlerun.workers.values.module_tensors import tensor_places

STEPS = 40
"""Within which all is looked at, where nothing else is asked for; see docs/corruption.md."""
PRIME = 65521
"""The largest one of 16 bits: sums over replicas, and those of squares, stay exact in float64."""
NUM_NUMBERS = 2
"""Of a checksum."""

_COLUMNS = 512
_ROW_BYTES = 8 * _COLUMNS
_SLICE_BYTES = 1 << 18
"""A state below this is looked at in one step; some 20 us."""
_PARTS = 8
"""Of a slice, where the steps of a pass are enough for that: what is done for each takes as long as
100 KB."""
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)


def steps_of(config: TrainConfig) -> int:
    """Within which all of the state is compared; 0: never."""
    return max(0, config.verify_steps or STEPS)


class Kind(StrEnum):
    """What a tensor of the state is."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    OPTIMIZER = "optimizer state"
    AVERAGE = "average of parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the state: not it, but where it is, as it may be replaced."""

    name: str
    kind: Kind
    find: Callable[[], Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some bytes of one tensor, in order of its memory."""

    entry: Entry
    start: int
    end: int


def entries_of(
    stage: nn.Module, optimizer: Optimizer | None, averages: Mapping[str, Tensor] | None = None
) -> Iterator[Entry]:
    """All that replicas of a stage keep alike, in an order that they have alike.

    Args:
        stage: parameters and buffers.
        optimizer: of these; None: it keeps nothing.
        averages: of parameters, by name; they are the same tensors always.
    """
    for place in tensor_places(stage):
        if place.is_kept:
            kind = Kind.PARAMETER if place.is_parameter else Kind.BUFFER
            yield Entry(name=place.name, kind=kind, find=partial(getattr, place, "tensor"))
    for name, tensor in (averages or {}).items():
        yield Entry(name=name, kind=Kind.AVERAGE, find=partial(_itself, tensor))
    if optimizer is None:
        return
    for name, parameter in stage.named_parameters():
        state = optimizer.state.get(parameter, {})
        # Sorted: after a restart the keys may have come back in another order.
        for key in sorted(key for key, value in state.items() if isinstance(value, Tensor)):
            yield Entry(
                name=f"{name}.{key}",
                kind=Kind.OPTIMIZER,
                find=partial(_state, optimizer, parameter, key),
            )


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _state(optimizer: Optimizer, parameter: Tensor, key: str) -> Tensor | None:
    found = optimizer.state.get(parameter, {}).get(key)
    return found if isinstance(found, Tensor) else None


def cut_into_slices(entries: Sequence[Entry], most: int) -> list[list[Part]]:
    """All bytes of all entries, in order, in slices of equal length.

    Args:
        entries: of the state.
        most: slices; fewer, where the state is small.
    """
    sizes = [0 if (t := each.find()) is None else t.numel() * t.element_size() for each in entries]
    # Rounded up, so that no word of 8 bytes is cut apart.
    begins = list(accumulate((rounded_up(size, 8) for size in sizes), initial=0))
    total = begins[-1]
    if not total:
        return []
    wanted = min(most, max(-(-total // _SLICE_BYTES), -(-len(entries) // _PARTS)))
    length = rounded_up(-(-total // wanted), 8)
    slices: list[list[Part]] = [[] for _ in range(-(-total // length))]
    for entry, begin, size in zip(entries, begins, sizes, strict=False):
        start = 0
        while start < size:
            number = (begin + start) // length
            end = min(size, (number + 1) * length - begin)
            slices[number].append(Part(entry=entry, start=start, end=end))
            start = end
    return [each for each in slices if each]


class Checksum:
    """Sums the bytes of parts; on their device, and without a wait for it.

    Args:
        device: of most of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        positions = torch.arange(1, _COLUMNS + 1, device=device)
        self._weights = torch.stack([torch.ones_like(positions), positions])
        self._none = torch.zeros(_ROW_BYTES, dtype=torch.uint8, device=device)

    def of(self, parts: Sequence[Part]) -> Tensor:
        """`NUM_NUMBERS` whole numbers below 2^16: of the bits, and of their order as well."""
        found = ((each, each.entry.find()) for each in parts)
        return self.of_bytes(
            bytes_of(tensor)[part.start : part.end] for part, tensor in found if tensor is not None
        )

    def of_bytes(self, pieces: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
        """The same of bytes, (n,) each."""
        sums: Tensor | None = None
        rest = []
        for piece in pieces:
            here = piece.to(self._device, non_blocking=True)
            full = len(here) - len(here) % _ROW_BYTES
            if full:
                # Sums of whole numbers are of 64 bits, and begin again at their end: the same on
                # all replicas.
                sums = _added(sums, self._rows(here[:full]))
            if full < len(here):
                rest.append(here[full:])
        if rest:
            num_bytes = sum(map(len, rest))
            rest.append(self._none[: -num_bytes % _ROW_BYTES])
            sums = _added(sums, self._rows(torch.cat(rest)))
        if sums is None:
            sums = torch.zeros_like(self._weights[0])
        return (sums * self._weights).sum(1).remainder_(PRIME)

    @staticmethod
    def _rows(data: Tensor) -> Tensor:
        if data.storage_offset() % 8:
            data = data.clone()  # words have to begin where words may
        return data.view(torch.int64).view(-1, _COLUMNS).sum(0)


def _added(sums: Tensor | None, rows: Tensor) -> Tensor:
    # A step asks its device for little: most slices have one piece.
    return rows if sums is None else sums * _ODD + rows


def bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of the elements, (n,), in the order of memory."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_contiguous():
        flat = tensor.view(-1)
    elif tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        flat = tensor.as_strided((tensor.numel(),), (1,), 0)  # in another order, as channels_last
    else:
        flat = tensor.contiguous().view(-1)
    return flat.view(torch.uint8)
