"""What a piece of a snapshot is, wherever it is kept: named tensors of one stage at one step.

The replicas of a stage on a node share its tensors out, so that each copies its part only; all
pieces of a step together are the run's state. Names are the model's own (`workers.state.named`),
so a piece serves any split.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.values.flat import dtype_named, laid_out, name_of_dtype, num_bytes_of


class Spec(NamedTuple):
    """What a tensor looks like."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """That of `tensor`."""
        return cls(name_of_dtype(tensor.dtype), tuple(tensor.shape))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return dtype_named(self.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return num_bytes_of(self.shape, self.torch_dtype)


@dataclass(frozen=True, slots=True, order=True)
class SnapshotId:
    """Which state it is; the later one is the greater.

    Args:
        step: finished steps it was taken after.
        token: the round that took it. A step that was done twice was so by two rounds, and their
            results, equal only to rounding, must not be mixed.
    """

    step: int
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a piece belongs to.

    Args:
        step, token: see `SnapshotId`.
        stage: the stage of that round whose tensors these are.
        num_stages: stages of that round.
        num_names: tensors of the whole stage; as many names have to be found for it to be complete.
        progress: how far the run had come.
        situation: the layout it was written for, where only one rank can use it; else empty.
        era: of the run, see `launcher.corruption.marks`.
    """

    step: int
    token: str
    stage: int
    num_stages: int
    num_names: int
    progress: Progress
    situation: str = ""
    era: int = 0

    @property
    def id(self) -> SnapshotId:
        """The state that it is a piece of."""
        return SnapshotId(self.step, self.token)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor of a piece is in its memory."""

    specs: Mapping[str, Spec]
    begins: Mapping[str, int]
    num_bytes: int

    @classmethod
    def of(cls, specs: Mapping[str, Spec]) -> Layout:
        """The tensors one after the other, in the order given."""
        # Aligned, as tensors of any dtype are viewed in this memory.
        begins, end = laid_out(spec.num_bytes for spec in specs.values())
        return cls(dict(specs), dict(zip(specs, begins, strict=True)), end)

    def view(self, data: Tensor, name: str) -> Tensor:
        """One of the tensors, in the memory `data` of a piece."""
        spec, begin = self.specs[name], self.begins[name]
        part = data[begin : begin + spec.num_bytes]
        return part.view(spec.torch_dtype).view(spec.shape)


def split_by_bytes(sizes: Mapping[str, int], num_shares: int) -> list[list[str]]:
    """Names in `num_shares` parts of about equal bytes; some may be empty.

    A function of its arguments alone, so that ranks agree without a word: the longest first, each
    to whoever has least.
    """
    shares: list[list[str]] = [[] for _ in range(num_shares)]
    # A heap: the first entry is the share with the fewest bytes, of equals the one with the
    # lowest number, so that the result is the same on all ranks.
    filled = [(0, share) for share in range(num_shares)]
    for name in longest_first(sizes):
        num_bytes, share = filled[0]
        shares[share].append(name)
        heapq.heapreplace(filled, (num_bytes + sizes[name], share))
    return shares


def longest_first(sizes: Mapping[str, int]) -> Iterable[str]:
    """The names by size, equal ones by name."""
    return sorted(sizes, key=lambda name: (-sizes[name], name))
