"""Whether the copies of a state are still equal: a little of it in every step, or all of it.

Of a stage its replicas have copies; of what stages share, all replicas of all these stages.

    step        0         1         2         3
    window   |-- 0 --|-- 1 --|-- 2 --|-- 0 --|     of the state, in turn: a part of one tensor
    sums     a checksum h and its square, which ride along with the gradients

For n replicas all h are equal exactly where n sum(h^2) = sum(h)^2; pieces of 16 bits keep both sums
exact in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.stage import attach
from bundlerun.workers.values.module_tensors import TensorPlace, tensor_places

NUM_SUMS = 4
"""Numbers of a step's sums that the check needs: two checksums and their squares."""

_WINDOW = 16 << 10
"""Elements that one step looks at; some 50 us, where a step takes 30 ms and more."""
_PRIME = 65521
"""The largest one of 16 bits."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some elements of one tensor, in order of its memory."""

    place: TensorPlace
    start: int
    end: int


class ReplicaCheck:
    """Compares this rank's stage with that of all other replicas.

    Args:
        stage: of this rank.
        what: is compared, in words, such as "the replicas of stage 1".
        num_replicas: ranks that have this stage.
        also: another cause why they may differ, in words.
    """

    def __init__(self, stage: nn.Module, what: str, num_replicas: int, also: str = "") -> None:
        self._stage = stage
        self._what = what
        self._also = also
        self._num_replicas = num_replicas
        kept = [place for place in tensor_places(stage) if place.is_kept]
        self._windows = cut_into_windows(kept) if num_replicas > 1 else []
        if self._windows:
            device = kept[0].tensor.device
            positions = torch.arange(1, _WINDOW + 1, device=device)
            # Weighted by position, too: a plain sum would not see two elements change places.
            self._weights = torch.stack([torch.ones_like(positions), positions])
            self._exponents = torch.tensor([[1], [2]], device=device)

    def write(self, sums: Tensor, step: int) -> None:
        """Puts this rank's part for `step` into `NUM_SUMS` zeros of the step's sums.

        Call it before the forwards, which may write to the state.
        """
        if self._windows:
            checksum = _checksum(self._window(step), self._weights)
            torch.pow(checksum, self._exponents, out=sums.view(2, 2))

    def check(self, sums: Sequence[float], step: int) -> None:
        """Checks the sums over all replicas of what `write` gave, (NUM_SUMS,).

        Raises:
            ConfigError: they were not equal; on every replica alike.
        """
        linear, square = sums[:2], sums[2:]
        if self._windows and not self._are_equal(linear, square):
            name = self._window(step).place.name
            raise ConfigError(
                f"{self._what} differ in {name!r} before step {step}: "
                "either the model writes to it where nobody sees it (through .data, or outside of "
                f"its forward), or a device computes wrongly{self._also}; --verify-replicas looks "
                "at all of it after each step"
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
            raise RuntimeError(f"{self._what} differ after step {step}")

    def _window(self, step: int) -> Window:
        return self._windows[step % len(self._windows)]

    def _are_equal(self, linear: Sequence[float], square: Sequence[float]) -> bool:
        # Whole numbers below 2^53 each; their products are not, so Python's integers multiply.
        pairs = zip(linear, square, strict=True)
        return all(self._num_replicas * int(s) == int(one) ** 2 for one, s in pairs)


class SumOfCopies(Protocol):
    """The sum over all ranks that have copies of the same parameters."""

    @property
    def stages(self) -> Sequence[int]:
        """That have them."""
        ...

    @property
    def copies(self) -> Mapping[str, Parameter]:
        """Those of this rank, by name."""
        ...

    @property
    def num_holders(self) -> int:
        """Ranks of all these stages."""
        ...

    @property
    def extra(self) -> Tensor:
        """`replica_check.NUM_SUMS` numbers that ride along with the sum."""
        ...

    def all_sum(self, values: Tensor) -> Tensor:
        """A sum outside a step."""
        ...


class CopyChecks:
    """Compares a rank's copies with those of all other stages and replicas.

    Args:
        sums: one for each set of stages that share something with this rank's.
    """

    def __init__(self, sums: Sequence[SumOfCopies]) -> None:
        self._checks = [(each, _check_of(each)) for each in sums]

    def write(self, step: int) -> None:
        """Puts this rank's part into the sums of a step, which are zeros; before the forwards."""
        for each, check in self._checks:
            check.write(each.extra, step)

    def check(self, sums: Sequence[Sequence[float]], step: int) -> None:
        """Checks what has become of it.

        Raises:
            ConfigError: the copies were not equal.
        """
        for (_, check), found in zip(self._checks, sums, strict=True):
            check.check(found, step)

    def verify(self, step: int, device: torch.device) -> None:
        """Compares all of the copies.

        Collective: all ranks that have some, outside a step.

        Raises:
            RuntimeError: they are not bit-equal.
        """
        for each, check in self._checks:
            check.verify(step, each.all_sum, device)


def _check_of(each: SumOfCopies) -> ReplicaCheck:
    only_these = nn.Module()
    for name, parameter in each.copies.items():
        attach(only_these, name, parameter)
    stages = " and ".join(map(str, each.stages))
    return ReplicaCheck(
        only_these,
        f"the copies of what stages {stages} share",
        each.num_holders,
        also=", or the optimizer's step for a parameter depends on which others its stage has",
    )


def cut_into_windows(places: Sequence[TensorPlace]) -> list[Window]:
    """Pure: windows over all elements, in order; each of one tensor, at most `_WINDOW` long."""
    return [
        Window(place=place, start=start, end=min(start + _WINDOW, place.tensor.numel()))
        for place in places
        for start in range(0, place.tensor.numel(), _WINDOW)
    ]


def _checksum(window: Window, weights: Tensor) -> Tensor:
    """Two numbers below 2^16, (2,): of the elements' bits, and of their order as well."""
    bits = _bits(window.place.tensor.detach())[window.start : window.end]
    # Sums of whole numbers are of 64 bits, and begin again at their end: the same on all replicas.
    sums = (bits * weights[:, : len(bits)]).sum(1)
    # Below 2^16, so that the squares of all replicas stay exact in float64.
    return sums.remainder_(_PRIME)


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
