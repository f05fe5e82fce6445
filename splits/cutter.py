"""What the ways to cut a model have in common, and which of them cuts which model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import nn

from bundlerun.launcher.errors import ConfigError


class NoExample(ConfigError):
    """Nobody knows what the model is called with, and the cut depends on that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place where a model can be cut, and what it would mean."""

    names: tuple[str, ...]
    """All that the place is called, the outermost module first."""
    operations: int
    """Floating point operations before it, of one forward; 0 where they are not counted."""
    parameter_bytes: int
    """Of the parameters that are used before it."""
    crossing_bytes: int
    """Of the tensors that would be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """All places of a model, in order, and what the whole model has."""

    places: Sequence[Place]
    operations: int
    parameter_bytes: int

    def operations_between(self, cuts: Sequence[str]) -> list[int]:
        """The operations of the parts that `cuts`, which are names of places, make."""
        by_name = {name: place.operations for place in self.places for name in place.names}
        ends = sorted(by_name.get(cut, 0) for cut in cuts)
        return [b - a for a, b in pairwise((0, *ends, self.operations))]

    def worst_load(self, cuts: Sequence[str], shares: Sequence[float]) -> float:
        """Operations of the most loaded device over those of the mean one; 0: not counted."""
        if not self.operations:
            return 0.0
        loads = [n / s for n, s in zip(self.operations_between(cuts), shares, strict=True)]
        return max(loads) * sum(shares) / self.operations


class Cuttable(Protocol):
    """A model, and every place where one way to cut it can."""

    model: nn.Module

    @property
    def names(self) -> list[str]:
        """The valid cut names."""

    def places(self, inputs: Sequence[object] = ()) -> Places:
        """Where it can be cut; `inputs`: what it is called with."""

    def find(self, name: str, also: Sequence[str] = ()) -> object:
        """The boundary of that name; raises ConfigError, which may propose names of `also`, too."""

    def equal_cuts(
        self, num_parts: int, *, shares: Sequence[float] = (), inputs: Sequence[object] = ()
    ) -> tuple[str, ...]:
        """Cuts into parts of about equal work."""

    def cut(self, cuts: Sequence[str], chunks_per_stage: int = 1) -> list[nn.Module]:
        """The stages."""
