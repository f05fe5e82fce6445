"""The machines of a run: how many, how often they fail, how long they are away."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What takes something away, at random times.

    Args:
        every_s: mean time until it happens to one that is there, seconds; inf: never.
        away_s: mean time until it is back; 0: at once.
    """

    every_s: float = math.inf
    away_s: float = 0.0

    @property
    def rate(self) -> float:
        """Times a second."""
        return 1 / self.every_s

    @property
    def odds(self) -> float:
        """Time away over time there."""
        return self.away_s / self.every_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Nodes that are alike.

    Args:
        nodes: that the run wants.
        spares: more of them, which wait for a place, and fail as the others do.
        devices: of a node.
        bundle: devices of a bundle.
        failure: of a node, which is repaired.
        crash: of the ranks of a node, which stays.
        drain: a node is taken away on purpose.
        rack_nodes: nodes of a rack; 0: nothing is common to several nodes.
        rack: all nodes of a rack are gone at once, and are back at once.
    """

    nodes: int
    spares: int = 0
    devices: int = 1
    bundle: int = 1
    failure: Absence = Absence()
    crash: Absence = Absence()
    drain: Absence = Absence()
    rack_nodes: int = 0
    rack: Absence = Absence()

    @property
    def size(self) -> int:
        """Nodes, spare ones too."""
        return self.nodes + self.spares

    @property
    def num_racks(self) -> int:
        """Racks, the last of which may be less than full."""
        return -(-self.size // self.rack_nodes) if self.rack_nodes else 0

    @property
    def span(self) -> int:
        """Nodes that a bundle has a part of, at least."""
        return -(-self.bundle // self.devices)

    def bundles(self, up: int) -> int:
        """Whole bundles on so many nodes, of which no more take part than the run wants."""
        return min(up, self.nodes) * self.devices // self.bundle

    def seats(self, bundles: int) -> int:
        """Nodes that so many bundles need."""
        return -(-bundles * self.bundle // self.devices)

    def busy(self, bundles: int) -> float:
        """Devices of so many bundles, in nodes."""
        return bundles * self.bundle / self.devices

    def copies(self, bundles: int) -> int:
        """Nodes that hold the same stage: a bundle inside a node makes it a copy of all."""
        return self.seats(bundles) if self.span == 1 else bundles

    @property
    def away_share(self) -> float:
        """Share of time in which a node is away, by what befalls it alone."""
        odds = self.failure.odds + self.drain.odds
        return odds / (1 + odds)
