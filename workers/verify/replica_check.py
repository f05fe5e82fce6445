"""Whether the copies of a state are still equal: a slice of it in every step, or all of it.

Of a stage its replicas have copies; of what stages share, all replicas of all these stages.

    step         0         1         2         3
    slice    |-- 0 --|-- 1 --|-- 2 --|-- 0 --|     of the state, in turn
    sums     a checksum h and its square, which ride along with the gradients

For n replicas all h are equal exactly where n sum(h^2) = sum(h)^2; pieces of 16 bits keep both sums
exact in float64. Only where they are not, the replicas tell each other what each has of each part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from bundlerun.splits.stage import attach
from bundlerun.workers.verify.slices import (
    NUM_NUMBERS,
    Checksum,
    Entry,
    Part,
    cut_into_slices,
    entries_of,
)
from bundlerun.workers.verify.suspects import first_difference

NUM_SUMS = 2 * NUM_NUMBERS
"""Numbers of a step's sums that the check needs: a checksum and its square."""

Entries = Callable[[], Sequence[Entry]]
AllSum = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What replicas differ in.

    Args:
        kind: of the tensor.
        name: of it.
        wrong: replicas that have not what the others have; none where no majority says so.
    """

    kind: str
    name: str
    wrong: tuple[int, ...] = ()


class ReplicaCheck:
    """Compares this rank's state with that of all other replicas.

    Args:
        entries: gives what there is to compare, the same on all replicas.
        num_replicas: ranks that have it.
        device: of the state.
        most_steps: after so many all of it has been looked at.
    """

    def __init__(
        self, entries: Entries, num_replicas: int, device: torch.device, most_steps: int
    ) -> None:
        self._entries = entries
        self._num_replicas = num_replicas
        self._device = device
        self._most_steps = most_steps
        self._slices: list[list[Part]] = []
        self._num_entries = -1
        self._checksum: Checksum | None = None
        self._looked: list[Part] = []
        """At, in the step that is under way or the last one."""

    @property
    def is_on(self) -> bool:
        """Whether there is anything to compare, and with whom."""
        return self._num_replicas > 1 and self._most_steps > 0

    @torch.no_grad()
    def write(self, sums: Tensor, step: int) -> None:
        """Puts this rank's part for `step` into `NUM_SUMS` zeros of the step's sums.

        Call it before the forwards, which may write to the state.
        """
        if not self.is_on:
            return
        self._plan(step)
        self._looked = self._slices[step % len(self._slices)] if self._slices else []
        if self._looked:
            found = self._sums().of(self._looked)
            sums.view(2, NUM_NUMBERS)[0] = found
            sums.view(2, NUM_NUMBERS)[1] = found**2

    def _plan(self, step: int) -> None:
        """Cuts anew where a pass begins: the optimizer's state comes with its first step."""
        if self._slices and step % len(self._slices):
            return
        entries = self._entries()
        if len(entries) != self._num_entries:
            self._num_entries = len(entries)
            self._slices = cut_into_slices(entries, self._most_steps)

    def _sums(self) -> Checksum:
        if self._checksum is None:
            self._checksum = Checksum(self._device)
        return self._checksum

    def is_equal(self, sums: Sequence[float]) -> bool:
        """Whether all replicas have said the same; by the sums over them of what `write` gave."""
        return are_equal(self._num_replicas, sums)

    def name(self, replica: int, all_sum: AllSum) -> Finding:
        """What replicas differ in, and which of them, of what was looked at last.

        Collective: all of them, outside a step.

        Args:
            replica: this one.
            all_sum: over all replicas.
        """
        return self._named(self._looked, replica, all_sum)

    @torch.no_grad()
    def _named(self, parts: Sequence[Part], replica: int, all_sum: AllSum) -> Finding:
        own = torch.zeros(self._num_replicas, len(parts), dtype=torch.float64, device=self._device)
        for index, part in enumerate(parts):
            high, low = self._sums().of([part]).double()
            own[replica, index] = high * 65536 + low
        table = all_sum(own.view(-1)).view(self._num_replicas, -1).tolist()
        found = first_difference([[int(number) for number in row] for row in table])
        if found is None:  # it was gone when it was looked at again
            names = ", ".join(dict.fromkeys(part.entry.name for part in parts[:3]))
            return Finding(kind=parts[0].entry.kind, name=f"{names} or what is next to it")
        entry = parts[found.index].entry
        return Finding(kind=entry.kind, name=entry.name, wrong=found.wrong)

    @torch.no_grad()
    def verify(self, replica: int, all_sum: AllSum) -> Finding | None:
        """Compares the whole state; None where it is equal.

        Collective: every replica, outside a step.
        """
        entries = self._entries()
        whole = [part for each in cut_into_slices(entries, 1) for part in each]
        digest = hashlib.sha256()
        for entry in entries:
            tensor = entry.find()
            if tensor is not None:
                digest.update(_exact_bytes(tensor))
        pieces = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint16).double()
        sums = all_sum(torch.cat([pieces, pieces**2]).to(self._device)).tolist()
        if are_equal(self._num_replicas, sums):
            return None
        return self._named(whole, replica, all_sum)


def are_equal(num_replicas: int, sums: Sequence[float]) -> bool:
    """Pure: whether all have said the same, by the sums of numbers, then of their squares."""
    linear, square = sums[: len(sums) // 2], sums[len(sums) // 2 :]
    # Whole numbers below 2^53 each; their products are not, so Python's integers multiply.
    pairs = zip(linear, square, strict=True)
    return all(num_replicas * int(s) == int(one) ** 2 for one, s in pairs)


def _exact_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes()


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
        """`NUM_SUMS` numbers that ride along with the sum."""
        ...

    def all_sum(self, values: Tensor) -> Tensor:
        """A sum outside a step."""
        ...


def check_of_copies(each: SumOfCopies, device: torch.device, most_steps: int) -> ReplicaCheck:
    """Compares what stages share with all other stages and replicas."""
    only_these = nn.Module()
    for name, parameter in each.copies.items():
        attach(only_these, name, parameter)
    entries = list(entries_of(only_these, None))
    return ReplicaCheck(lambda: entries, each.num_holders, device, most_steps)
