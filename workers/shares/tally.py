"""The numbers of all ranks, on all ranks, after each step: no message is sent for them.

step s   begins           each rank puts its own into the word of its bundle
forwards done    the word is there: the numbers of the bundle go to its places among
the small sums, once for each stage
ends             the sums are there: all ranks of all stages have the same numbers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bundlerun.launcher.layout.topology import Place, Topology
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.shares.spent import NUM_SPENT, Spent

MOST_RANKS = 256
"""Of more, the numbers would take a part of the step: they are shared at an epoch's end only."""


class Tally:
    """What travels in the word of the bundle and among the small sums.

    Args:
        topology: of the round.
        place: of this rank.
        own: its numbers, asked once per step.
    """

    def __init__(
        self, topology: Topology, place: Place, own: Callable[[], Sequence[float]]
    ) -> None:
        self._own = own
        self._place = place
        self._positions = topology.positions
        self._ranks = topology.bundles
        self._position = self._positions.index((place.stage, place.replica))
        self._in_bundle = len(self._positions) * NUM_SPENT
        self._bundle = [0.0] * self._in_bundle
        self._is_told = False
        self.num_slots = self._in_bundle * topology.num_bundles
        """Numbers among the small sums."""
        self.spent: dict[int, Spent] = {}
        """Of each active rank, as of the last step's begin."""

    # --- in the word of the bundle

    @property
    def size(self) -> int:
        """Numbers in the word."""
        return self._in_bundle

    def own(self) -> list[float]:
        """Those of this rank, at their place among those of its bundle; the others are zero."""
        found = [0.0] * self._in_bundle
        begin = self._position * NUM_SPENT
        found[begin : begin + NUM_SPENT] = self._own()
        return found

    def hear(self, numbers: Sequence[float]) -> None:
        """Those of the whole bundle."""
        self._bundle = list(numbers)
        self._is_told = True

    # --- among the small sums

    def fill(self, slots: Tensor) -> None:
        """Puts those of the bundle to their place; one replica does it for its stage.

        Args:
            slots: float64, (num_slots,), zeros.
        """
        if self._is_told and self._place.replica == 0:
            begin = self._place.bundle * self._in_bundle
            own = torch.tensor(self._bundle, dtype=torch.float64)
            slots[begin : begin + self._in_bundle].copy_(door.placed(own, slots.device))
        self._is_told = False

    def read(self, numbers: Sequence[float]) -> None:
        """The sums: as each number has one rank that puts it in, they are that number."""
        each = iter(range(0, self.num_slots, NUM_SPENT))
        self.spent = {
            rank: Spent(*numbers[begin : begin + NUM_SPENT])
            for ranks in self._ranks
            for rank, begin in zip(ranks, each, strict=False)
        }
