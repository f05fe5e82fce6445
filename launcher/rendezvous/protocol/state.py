"""Pure: what a coordinator knows, and the numbers it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.rendezvous.protocol.messages import (
    Closed,
    Pulse,
    Report,
    Round,
    RoundId,
    Seat,
    Status,
    ToMember,
)
from bundlerun.launcher.rendezvous.protocol.votes import has_quorum, is_ended


class Phase(Enum):
    """What the coordinator is to its nodes."""

    GATHERING = "gathering"
    ELECTING = "electing"
    ACTIVE = "active"
    CLOSED = "closed"


class Step(Enum):
    """What a proposed round waits for."""

    CLAIM = "claim"
    HOST = "host"
    ACCEPT = "accept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Numbers that all nodes share, and which candidate this one is.

    salt: a number of this start of the coordinator, for `next_term`.
    grace_s: how long a node whose connection broke may take to come back.
    first_wait_s: how long the first round waits for `max_nodes` once `min_nodes` are there.
    stop_wait_s: how long a node may take to stop its workers and come for the next round.
    minority_wait_s: how long nodes without a quorum wait before they try the fence.
    """

    index: int = 0
    salt: int = 0
    num_candidates: int = 1
    min_nodes: int = 1
    max_nodes: int = 1
    bundle_size: int = 1
    has_fence: bool = False
    lease_s: float = 1.5
    grace_s: float = 0.25
    first_wait_s: float = 30.0
    stop_wait_s: float = 60.0
    minority_wait_s: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A node as the coordinator knows it.

    broken_at: since when its connection is down, None while it is up.
    sent: the last wish that went out to it, so that it goes out once.
    """

    report: Report
    arrival: int
    broken_at: float | None = None
    sent: ToMember | None = None
    is_blind: bool = False

    @property
    def seat(self) -> Seat:
        """Its name, address and size."""
        return self.report.seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A round on its way.

    void: claims of others that can never be in force; claimed_at: when its own was made.
    """

    round: Round
    step: Step
    accepted: frozenset[str] = frozenset()
    void: frozenset[RoundId] = frozenset()
    claimed_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a coordinator knows.

    since: when the phase, or its first node, began.
    base: the last round that may have been in force; in_force: the same while it is.
    grounds: the rounds of each of which the next one needs a quorum.
    over: why there is no round in force, cause in one word; over_at: since when.
    num_there_at: since when enough nodes for a first round are there.
    gone: candidates whose agents have ended, as some node found out; lost: incarnations that this
        coordinator saw go, and why; silent: those of them that said nothing any more, as behind a
        cut cable.
    waits_for: what keeps the next round, in plain words; retry_at: no proposal before then.
    """

    rules: Rules
    phase: Phase = Phase.GATHERING
    since: float = 0.0
    term: int = -1
    highest_term: int = -1
    highest_number: int = 0
    peers: Mapping[str, Peer] = field(default_factory=dict)
    num_arrivals: int = 0
    base: Round | None = None
    grounds: tuple[Round, ...] = ()
    in_force: Round | None = None
    over: str = ""
    cause: EndCause = EndCause.LEFT_OUT
    over_at: float = 0.0
    num_there_at: float | None = None
    proposal: Proposal | None = None
    gone: frozenset[int] = frozenset()
    lost: Mapping[str, str] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    closed: Closed | None = None
    waits_for: str = ""
    retry_at: float = 0.0

    @property
    def status(self) -> Status:
        """The answer to a node that looks for the active coordinator."""
        is_active = self.phase in (Phase.ACTIVE, Phase.CLOSED)
        number = self.base.number if self.base and is_active else 0
        lasts = [self.base, *(peer.report.last for peer in self.peers.values())]
        return Status(
            is_active=is_active,
            term=max(self.term, self.highest_term),
            number=number,
            last_term=max((round_.term for round_ in lasts if round_), default=-1),
        )

    @property
    def pulse(self) -> Pulse:
        """What it says at each beat."""
        return Pulse(
            term=self.term,
            is_active=self.phase is Phase.ACTIVE,
            number=self.in_force.number if self.in_force else 0,
            num_nodes=len(self.peers),
            waits_for=self.waits_for,
        )

    @property
    def followers(self) -> list[Peer]:
        """The nodes that follow this term, in order of arrival."""
        peers = (peer for peer in self.peers.values() if peer.report.promised == self.term)
        return sorted(peers, key=lambda peer: peer.arrival)

    def may_go_on(self, grounds: tuple[Round, ...], peers: list[Peer], now: float) -> bool:
        """True where nobody else can go on after these rounds, or the fence is to decide that."""
        if self.rules.num_candidates == 1:
            return True
        if not grounds:
            return self._may_begin(peers, now)
        return all(self._may_go_on_after(round_, peers, now) for round_ in grounds)

    def _may_begin(self, peers: list[Peer], now: float) -> bool:
        """Nodes without a memory: of a round that was in force only the fence knows the end."""
        if not self.highest_known(peers):
            return True
        if not self.rules.has_fence:
            return False
        walls = [peer.report.fenced_by for peer in peers if peer.report.fenced_by]
        if walls:
            wall = max(walls, key=lambda round_: round_.id)
            return wall.is_fenced and is_ended(wall, [peer.seat.name for peer in peers])
        return self.phase is Phase.ACTIVE or now - self.since >= self.rules.minority_wait_s

    @staticmethod
    def highest_known(peers: list[Peer]) -> int:
        """The number of the latest round in force that one of these nodes has heard of."""
        return max((peer.report.known for peer in peers), default=0)

    def _may_go_on_after(self, round_: Round, peers: list[Peer], now: float) -> bool:
        if has_quorum(round_, (peer.seat for peer in peers)):
            return True
        here = {peer.seat.incarnation for peer in peers}
        missing = [seat for seat in round_.seats if seat.incarnation not in here]
        if self.phase is Phase.ACTIVE:
            # More nodes than are here may be alive and want to go on: the larger half goes first.
            is_smaller = 2 * len(missing) > len(round_.seats)
            may_try = not (is_smaller and any(seat.incarnation in self.silent for seat in missing))
        else:
            may_try = (
                all(seat.candidate in self.gone for seat in missing)
                or now - self.since >= self.rules.minority_wait_s
            )
        return bool(peers) and round_.is_fenced and self.rules.has_fence and may_try
