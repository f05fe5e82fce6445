"""Pure: what a node knows, and where it stands.

    Outside --want--> Waiting --Go--> InRound --Over, Fenced, cut off--> InRound, over
                         ^             |   ^ |                                 |
                         |             +Go-+ | into the round that its workers |
                         +---- want ---------+ go on in    -------- want ------+

Where a node stands is one of these (`Member.stand`). `Fenced` also takes its memory of rounds,
and it comes again as a newcomer. `Closed` ends the job for it wherever it stands; what its workers
still do, they may finish if the job has ended well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bundlerun.launcher.rendezvous.protocol.messages import (
    NO_ROUND,
    Closed,
    Over,
    Propose,
    Pulse,
    Round,
    RoundId,
    Seat,
)


@dataclass(frozen=True, slots=True)
class Outside:
    """The agent has not asked for a round yet."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The agent has asked for the next round; it has no workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InRound:
    """The agent has workers in a round, or is about to start them.

    Attributes:
        round: which.
        over: why they must leave it; None while they need not.
        is_done: all of them have finished well.
        is_moving: they are still on their way into it, from the round before.
    """

    round: Round
    over: Over | None = None
    is_done: bool = False
    is_moving: bool = False


Stand: TypeAlias = Outside | Waiting | InRound


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """All that a node knows.

    Attributes:
        seat: who it is.
        num_candidates: how many endpoints the job has.
        lease_s: silence after which the coordinator counts as dead.
        guided_at: when an active coordinator was last heard, seconds of this machine's clock.
        is_found: one was heard at all.
        pulse: the last sign of life of the coordinator that it is connected to; None without one.
        promised: the highest term that it follows; it takes no orders of a lower one.
        offer: the round that is proposed to it.
        pending: the round that it has accepted and that is not known to be in force.
        grounds: the rounds that `pending` was built on, any of which may have been the last one.
        last: the last round that it was in; None once a fence has taken its memory.
        last_before_fence: the last one before that, which it does not go back into.
        fenced_by: the round that took its memory, while it has come into none since.
        known: the highest number of a round that it has heard of.
        stand: where it stands.
        closed: how the job ended; None while it goes on.
        serial: of its last report or beat.
        gone: candidates whose endpoints refuse connections, so that their agents have ended.
        sees_fence: a claim of this job was in the fence folder here, so that an end there is its
            end.
        hosting: the round whose store it is to open, so that one is opened once.
        port: of that store; 0 as long as it is not open.
        pause_ms: see `Report`.
    """

    seat: Seat
    num_candidates: int
    lease_s: float
    guided_at: float
    is_found: bool = False
    pulse: Pulse | None = None
    promised: int = -1
    offer: Propose | None = None
    pending: Round | None = None
    grounds: tuple[Round, ...] = ()
    last: Round | None = None
    last_before_fence: RoundId = NO_ROUND
    fenced_by: Round | None = None
    known: int = 0
    stand: Stand = Outside()
    closed: Closed | None = None
    serial: int = 0
    gone: tuple[int, ...] = ()
    sees_fence: bool = False
    hosting: RoundId = NO_ROUND
    port: int = 0
    pause_ms: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether it asks for the next round."""
        return isinstance(self.stand, Waiting)

    @property
    def at(self) -> Round | None:
        """The round that its workers are in."""
        return self.stand.round if isinstance(self.stand, InRound) else None

    @property
    def over(self) -> Over | None:
        """Why they must leave it; None while they need not."""
        return self.stand.over if isinstance(self.stand, InRound) else None

    @property
    def is_done(self) -> bool:
        """Whether all of them have finished well."""
        return isinstance(self.stand, InRound) and self.stand.is_done

    @property
    def is_moving(self) -> bool:
        """Whether its workers are still on their way into their round, from the one before."""
        return isinstance(self.stand, InRound) and self.stand.is_moving

    def may_come(self, round_: Round) -> bool:
        """Whether it may come into a round: it waits for one, or its workers go on in it."""
        if isinstance(self.stand, InRound):
            goes_on = round_.before == self.stand.round.id
            return goes_on and not (self.stand.over or self.stand.is_done)
        # Whose workers have left the round before cannot go on in their processes.
        has_left = bool(round_.before) and self.last is not None and self.last.id == round_.before
        return self.is_waiting and not has_left

    @property
    def must_leave(self) -> bool:
        """Whether the workers are to stop: their round is over, or the job has failed."""
        if self.closed:
            return not self.closed.is_success
        return self.over is not None

    @property
    def may_miss_the_end(self) -> bool:
        """Whether nobody leads it, and only the fence folder would tell of the job's end."""
        has_leader = self.pulse is not None and self.pulse.is_active
        return self.closed is None and self.is_waiting and self.sees_fence and not has_leader

    @property
    def is_spare(self) -> bool:
        """Whether it waits while others have a round without it."""
        own = self.last.number if self.last else 0  # which it has just ended for all
        return self.is_waiting and self.pulse is not None and self.pulse.number not in (0, own)
