"""The fence of a cluster without disks: claims, the pulse of the round in force, the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bundlerun.launcher.rendezvous.protocol import coordinator, events
from bundlerun.launcher.rendezvous.protocol.messages import Closed, Round, RoundId


@dataclass
class SharedFolder:
    """What all nodes of a cluster see alike, as long as they look."""

    lease_s: float
    claims: list[Round] = field(default_factory=list)
    over: Closed | None = None
    pulse_at: float = -1e9

    def has(self, id_: RoundId) -> bool:
        """True where that round was claimed."""
        return any(claim.id == id_ for claim in self.claims)

    def ends(self, closed: Closed | None) -> None:
        """The job is over: what was claimed is of no use any more."""
        self.over = closed
        self.claims.clear()

    def claim(self, wish: coordinator.TryClaim, now: float) -> events.Claimed:
        """Claims a round, where no other is in its way."""
        term = wish.round.term
        if self.over and not wish.is_first:
            return events.Claimed(term=term, over=self.over)
        others = [c for c in self.claims if c.number > wish.after and c.id not in wish.void]
        if wish.is_first and now - self.pulse_at > 4 * self.lease_s:
            others = []  # a first round, and nobody keeps the pulse: those are of another job
        if others:
            return events.Claimed(term=term, others=tuple(others))
        if wish.seen and not any(c.number >= wish.seen for c in self.claims):
            return events.Claimed(term=term, error=f"round {wish.seen} is missing")
        highest = max((c.term for c in self.claims), default=-1)
        if highest > term:
            return events.Claimed(term=term, highest_term=highest)
        number = max([wish.round.number, *(c.number + 1 for c in self.claims)])
        self.pulse_at = now
        self.claims.append(replace(wish.round, number=number))
        return events.Claimed(term=term, number=number, at=now)
