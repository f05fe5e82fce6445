"""Whether the replicas of a stage are still equal: a little of it in every step, or all of it.

    step        0         1         2         3
    window   |-- 0 --|-- 1 --|-- 2 --|-- 0 --|     of the state, in turn
    sums     a checksum h and its square, which ride along with the gradients

For n replicas all h are equal exactly where n sum(h^2) = sum(h)^2; pieces of 16 bits keep both sums
exact in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.values.module_tensors import TensorPlace, tensor_places

NUM_SUMS = 4
"""Numbers of a step's sums that the check needs: two checksums and their squares."""

_WINDOW = 16 << 10
"""Elements that one step looks at; some 50 us, where a step takes 30 ms and more."""
_PIECES = 2
"""Most tensors that one step looks at: each costs a few calls, however short it is."""
_PRIME = 65521
"""The largest one of 16 bits."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some elements of one tensor, in order of its memory."""

    place: TensorPlace
    start: int
    end: int


class ReplicaCheck:
    """Compares this rank's stage with that of all other replicas.

    Args:
        stage: of this rank.
        number: of the stage.
        num_replicas: ranks that have this stage.
    """

    def __init__(self, stage: nn.Module, number: int, num_replicas: int) -> None:
        self._stage = stage
        self._number = number
        self._num_replicas = num_replicas
        kept = [place for place in tensor_places(stage) if place.is_kept]
        self._windows = cut_into_windows(kept) if num_replicas > 1 else []
        self._positions = _positions(kept) if self._windows else torch.zeros(0)

    def write(self, sums: Tensor, step: int) -> None:
        """Puts this rank's part for `step` into `NUM_SUMS` zeros of the step's sums.

        Call it before the forwards, which may write to the state.
        """
        if self._windows:
            linear, square = sums.split(2)
            linear.copy_(_checksum(self._window(step), self._positions))
            square.addcmul_(linear, linear)

    def check(self, sums: Sequence[float], step: int) -> None:
        """Checks the sums over all replicas of what `write` gave, (NUM_SUMS,).

        Raises:
            ConfigError: they were not equal; on every replica alike.
        """
        linear, square = sums[:2], sums[2:]
        if self._windows and not self._are_equal(linear, square):
            names = ", ".join(repr(piece.place.name) for piece in self._window(step))
            raise ConfigError(
                f"the replicas of stage {self._number} differ in {names} before step {step}: "
                "either the model writes to it where nobody sees it (through .data, or outside of "
                "its forward), or a device computes wrongly; --verify-replicas looks at all of it "
                "after each step"
            )

    def verify(self, step: int, all_sum: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Compares the whole state.

        Collective: every replica of the stage, outside a step.

        Raises:
            RuntimeError: they are not bit-equal.
        """
        digest = hashlib.sha256()
        for tensor in self._stage.state_dict().values():
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        pieces = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint16).double()
        sums = all_sum(torch.cat([pieces, pieces**2]).to(device)).cpu()
        linear, square = sums.chunk(2)
        if not self._are_equal(linear.tolist(), square.tolist()):
            raise RuntimeError(f"the replicas of stage {self._number} differ after step {step}")

    def _window(self, step: int) -> list[Piece]:
        return self._windows[step % len(self._windows)]

    def _are_equal(self, linear: Sequence[float], square: Sequence[float]) -> bool:
        # Whole numbers below 2^53 each; their products are not, so Python's integers multiply.
        pairs = zip(linear, square, strict=True)
        return all(self._num_replicas * int(s) == int(one) ** 2 for one, s in pairs)


def cut_into_windows(places: Sequence[TensorPlace]) -> list[list[Piece]]:
    """Pure: windows over all elements, in order; each at most `_PIECES` tensors, `_WINDOW` long."""
    windows: list[list[Piece]] = []
    room = 0
    for place in places:
        length = place.tensor.numel()
        start = 0
        while start < length:
            if not room or len(windows[-1]) == _PIECES:
                windows.append([])
                # Full by elements or by tensors; a long tensor continues in the next window.
                room = _WINDOW
            end = min(length, start + room)
            windows[-1].append(Piece(place=place, start=start, end=end))
            room -= end - start
            start = end
    return windows


def _positions(places: Sequence[TensorPlace]) -> Tensor:
    """1, 2, 3 and so on, for the elements of a window; on the device of the state."""
    return torch.arange(1, _WINDOW + 1, device=places[0].tensor.device)


def _checksum(window: Sequence[Piece], positions: Tensor) -> Tensor:
    """Two numbers below 2^16, (2,): of the elements' bits, and of their order as well."""
    pieces = [_bits(p.place.tensor.detach())[p.start : p.end] for p in window]
    # Sums of whole numbers are of 64 bits, and begin again at their end: the same on all replicas.
    bits = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    # Weighted by position: a plain sum would not see two elements that changed places.
    ordered = bits * positions[: len(bits)]
    # Below 2^16, so that the squares of all replicas stay exact in float64.
    return torch.stack([bits.sum(), ordered.sum()]).remainder_(_PRIME)


def _bits(tensor: Tensor) -> Tensor:
    """The elements as whole numbers, (n,), in the order of memory."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_contiguous():
        flat = tensor.view(-1)
    elif tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        flat = tensor.as_strided((tensor.numel(),), (1,), 0)  # in another order, as channels_last
    else:
        flat = tensor.reshape(-1)
    return flat.view(_WORDS[tensor.element_size()])
