"""Pure: what a coordinator knows, and the numbers it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from bundlerun.launcher.rendezvous.protocol.messages import (
    Closed,
    Over,
    Pulse,
    Report,
    Round,
    RoundId,
    Seat,
    Status,
    ToMember,
)


class Phase(Enum):
    """What the coordinator is to its nodes.

    GATHERING: it waits until those who are here may go on. ELECTING: it asks them to follow its
    term. ACTIVE: all of them do, and it makes rounds. CLOSED: the job is over.
    """

    GATHERING = "gathering"
    ELECTING = "electing"
    ACTIVE = "active"
    CLOSED = "closed"


class Step(Enum):
    """What a proposed round waits for.

    CLAIM: its number in the fence folder. HOST: the store, which its first seat opens. ACCEPT: all
    its seats.
    """

    CLAIM = "claim"
    HOST = "host"
    ACCEPT = "accept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Numbers that all nodes share, and which candidate this one is.

    Attributes:
        index: of this candidate among the endpoints.
        salt: a number of this start of the coordinator, for `next_term`.
        num_candidates: how many endpoints the job has; with one nobody can take over.
        min_nodes: fewest nodes of a round.
        max_nodes: most nodes of a round.
        bundle_sizes: ranks of a bundle, in each shape that will do; nodes that would not make use
            of more ranks are spare.
        has_fence: there is a fence folder, which decides where no quorum can.
        lease_s: silence after which a node counts as dead.
        grace_s: how long a node whose connection broke may take to come back.
        first_wait_s: how long the first round waits for `max_nodes` once `min_nodes` are there.
        stop_wait_s: how long a node may take to stop its workers and come for the next round.
        minority_wait_s: how long nodes without a quorum wait before they try the fence.
        hands_over: where a node joins, the workers of the others go on in their processes.
        move_wait_s: how long that may take; then all begin anew.
        rates: samples a second that nodes with so many workers each, the most first, are foreseen
            to do; what is not in there counts by its ranks.
    """

    index: int = 0
    salt: int = 0
    num_candidates: int = 1
    min_nodes: int = 1
    max_nodes: int = 1
    bundle_sizes: tuple[int, ...] = (1,)
    has_fence: bool = False
    lease_s: float = 1.5
    grace_s: float = 0.25
    first_wait_s: float = 30.0
    stop_wait_s: float = 60.0
    minority_wait_s: float = 4.0
    hands_over: bool = False
    move_wait_s: float = 600.0
    rates: Mapping[tuple[int, ...], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """How a node has stayed in rounds, see `growth`.

    Attributes:
        incarnation: the start of it that was taken in last.
        since: when it was.
        num_short: stays in a row, up to now, that were too short to pay.
    """

    incarnation: str = ""
    since: float = 0.0
    num_short: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A node as the coordinator knows it.

    Attributes:
        report: the last that it has said of itself.
        arrival: its place in the order in which nodes came.
        broken_at: since when its connection is down, None while it is up.
        sent: the last message that went out to it, so that it goes out once.
        sees_no_fence: it did not find a claim in its own view of the fence folder.
        came_at: when this start of it was first heard.
    """

    report: Report
    arrival: int
    broken_at: float | None = None
    sent: ToMember | None = None
    sees_no_fence: bool = False
    came_at: float = 0.0

    @property
    def seat(self) -> Seat:
        """Its name, address and size."""
        return self.report.seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A round on its way.

    Attributes:
        round: who would be in it.
        step: what it waits for.
        accepted: the names of the seats that have accepted it.
        void: claims of others that can never be in force.
        claimed_at: when its own claim was made.
    """

    round: Round
    step: Step
    accepted: frozenset[str] = frozenset()
    void: frozenset[RoundId] = frozenset()
    claimed_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a coordinator knows; times in seconds of this machine's clock.

    Attributes:
        rules: the numbers it goes by.
        phase: what it is to its nodes.
        since: when the phase began; while it gathers, when the first node came.
        term: its own; -1 before it first stood for election.
        highest_term: the highest that a node or a claim has told of.
        highest_number: of a round that was in force, claimed or proposed.
        peers: the nodes that are registered here, by name.
        num_arrivals: how many have come so far.
        base: the last round that may have been in force.
        grounds: the rounds of each of which the next one needs a quorum.
        in_force: `base` while it is in force; None while there is no round.
        over: why the round before ended; None where this coordinator has seen none end.
        over_at: since when there is none in force.
        began_at: since when there is one.
        num_there_at: since when enough nodes for a first round are there.
        proposal: the next round on its way.
        waits_for: what keeps the next round, for a reader.
        retry_at: no proposal before then.
        gone: candidates whose agents have ended, as some node found out.
        lost: incarnations that this coordinator saw go, and why.
        silent: those of them that said nothing any more, as after a cut cable.
        closed: how the job ended; None while it goes on.
        stays: how nodes have stayed in rounds, by name, as far as this coordinator saw.
        held: names of nodes that wait, as they come and go.
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
    over: Over | None = None
    over_at: float = 0.0
    began_at: float = 0.0
    num_there_at: float | None = None
    proposal: Proposal | None = None
    waits_for: str = ""
    retry_at: float = 0.0
    gone: frozenset[int] = frozenset()
    lost: Mapping[str, str] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    closed: Closed | None = None
    stays: Mapping[str, Stay] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

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
