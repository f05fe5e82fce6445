"""Pure: what a node answers. Events go in, its next state and its wishes come out.

What it has promised and accepted keeps two halves of a network apart: once it follows a term, it
accepts nothing of a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.rendezvous.protocol.messages import (
    NO_ROUND,
    Accept,
    Beat,
    Closed,
    Fenced,
    Go,
    Host,
    Hosted,
    Lead,
    Over,
    Propose,
    Pulse,
    Report,
    Round,
    ToMember,
    id_of,
)
from bundlerun.launcher.rendezvous.protocol.standing import InRound, Member, Waiting
from bundlerun.launcher.rendezvous.protocol.wishes import Note, Send
from bundlerun.launcher.run_folder.events import EventName


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStore:
    """Open the store of this round, then report its port with `opened`."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class LookForClaim:
    """See whether this round's claim is in the fence folder here, then report with `looked`."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Start the workers of this round."""

    round: Round


Wish: TypeAlias = Send | OpenStore | LookForClaim | Enter | Note
Answer: TypeAlias = tuple[Member, list[Wish]]
"""What a node has become, and what is to be done for it, in this order."""


def _note(event: EventName, number: int = 0, why: str = "") -> Note:
    return Note(event=event, details={"round": number, "why": why})


def report(member: Member) -> Answer:
    """The full report, which opens every connection."""
    member = replace(member, serial=member.serial + 1)
    message = Report(
        serial=member.serial,
        seat=member.seat,
        promised=member.promised,
        last=member.last,
        pending=member.pending,
        grounds=member.grounds,
        at=id_of(member.at),
        is_waiting=member.is_waiting,
        known=member.known,
        gone=member.gone,
        is_done=member.is_done,
        fenced_by=member.fenced_by,
        is_moving=member.is_moving,
        pause_ms=member.pause_ms,
    )
    return member, [Send(message=message)]


def beat(member: Member) -> Answer:
    """The short report, due at every heartbeat and after each change."""
    member = replace(member, serial=member.serial + 1)
    message = Beat(
        serial=member.serial,
        promised=member.promised,
        last=id_of(member.last),
        at=id_of(member.at),
        is_waiting=member.is_waiting,
        is_done=member.is_done,
        is_moving=member.is_moving,
        pause_ms=member.pause_ms,
    )
    return member, [Send(message=message)]


def want(member: Member, num_workers: int = 0) -> Answer:
    """The agent asks for the next round; its workers have stopped.

    Args:
        num_workers: how many it starts, once that is known.
    """
    seat = replace(member.seat, num_workers=num_workers or member.seat.num_workers)
    return report(replace(member, seat=seat, stand=Waiting()))


def finished(member: Member) -> Answer:
    """All workers of this node have ended well; it stays in its round until the job is over."""
    stand = member.stand
    if not isinstance(stand, InRound) or stand.over or stand.is_done:
        return member, []
    note = _note("finished", stand.round.number)
    member, wishes = beat(replace(member, stand=replace(stand, is_done=True)))
    return member, [*wishes, note]


def moved(member: Member, round_: Round) -> Answer:
    """All workers of this node are in the round now that they went on in."""
    stand = member.stand
    if not isinstance(stand, InRound) or stand.round.id != round_.id or not stand.is_moving:
        return member, []
    return beat(replace(member, stand=replace(stand, is_moving=False)))


def paused(member: Member, pause_ms: int) -> Answer:
    """The workers of this node do steps again, after so many milliseconds without one."""
    return beat(replace(member, pause_ms=pause_ms))


def opened(member: Member, round_: Round, port: int) -> Answer:
    """The store of a round listens."""
    if member.hosting == round_.id:
        member = replace(member, port=port)
    return member, [Send(message=Hosted(id=round_.id, port=port))]


def looked(member: Member, round_: Round, sees_fence: bool) -> Answer:
    """The claim of a round was looked for; without it a round that is offered is not accepted."""
    if sees_fence:
        return accept(replace(member, sees_fence=True), round_)
    is_offered = member.offer is not None and member.offer.round == round_
    refusal = Send(message=Accept(id=round_.id, sees_fence=False))
    return member, [refusal] if is_offered else []


def accept(member: Member, round_: Round) -> Answer:
    """Accepts a round, unless a higher term was promised meanwhile."""
    offer = member.offer
    # Looking for the claim took a while: the offer may be another one now.
    if offer is None or offer.round != round_ or not member.may_come(round_):
        return member, []
    if round_.term != member.promised:
        return member, []
    # Remembered before it is said: the yes may be all that others ever know of this round.
    if id_of(member.last) < round_.id:
        member = replace(member, pending=round_, grounds=offer.grounds)
    return member, [Send(message=Accept(id=round_.id, sees_fence=True))]


def receive(member: Member, message: ToMember, now: float) -> Answer:
    """What a word of the coordinator changes."""
    match message:
        # A promise is never taken back: a lower term only hears what was promised (I10).
        case Lead(term=term) if term >= member.promised:
            return report(replace(member, promised=term))
        case Lead() | Propose() | Host() if _term_of(message) < member.promised:
            return report(member)  # says what was promised
        case Host(round=round_) if member.hosting != round_.id and member.may_come(round_):
            return replace(member, hosting=round_.id, port=0), [OpenStore(round=round_)]
        # The answer was lost with a connection: the store is open already.
        case Host(round=round_) if member.hosting == round_.id and member.port:
            return opened(member, round_, member.port)
        case Propose(round=round_) if round_.term == member.promised:
            member = replace(member, offer=message)
            return (
                (member, [LookForClaim(round=round_)])
                if round_.is_fenced
                else (accept(member, round_))
            )
        case Go(term=term, round=round_) if term == member.promised:
            return _go(member, round_, now)
        case Over(id=id) if member.at and member.at.id == id and not member.over:
            return _must_leave(member, message), [_note("over", member.at.number, message.reason)]
        case Fenced(term=term, by=by, reason=reason) if term == member.promised:
            if member.at:
                over = Over(id=member.at.id, cause=EndCause.LEFT_OUT, reason=reason)
                member = _must_leave(member, over)
            member = replace(
                member,
                # The lost half's rounds must not count as votes or grounds any more.
                last=None,
                last_before_fence=max(member.last_before_fence, id_of(member.last)),
                fenced_by=by,
                known=max(member.known, by.number),
                pending=None,
                grounds=(),
            )
            return member, [_note("fenced", why=reason), LookForClaim(round=by)]
        case Closed():
            note = _note("closed", why=message.reason)
            return replace(member, closed=message), [] if member.closed else [note]
        case Pulse():
            return _guided(member, message, now), []
    return member, []


def _must_leave(member: Member, over: Over) -> Member:
    """The workers are to leave the round that they are in."""
    assert isinstance(member.stand, InRound)
    return replace(member, stand=replace(member.stand, over=over))


def _term_of(message: Lead | Propose | Host) -> int:
    return message.term if isinstance(message, Lead) else message.round.term


def _go(member: Member, round_: Round, now: float) -> Answer:
    # Never again into a round that was left, nor into one from before the fence.
    is_old = max(member.last_before_fence, id_of(member.last)) >= round_.id
    if not member.may_come(round_) or not round_.has(member.seat) or is_old:
        return beat(member)
    candidates = {seat.candidate for seat in round_.seats}
    member = replace(
        member,
        last=round_,
        fenced_by=None,
        pending=None,
        grounds=(),
        offer=None,
        stand=InRound(round=round_, is_moving=bool(round_.before)),
        known=max(member.known, round_.number),
        # Before its agent had started an endpoint refused connections, too.
        gone=tuple(index for index in member.gone if index not in candidates),
        guided_at=now,
        is_found=True,
    )
    member, wishes = beat(member)
    return member, [Enter(round=round_), _note("round", round_.number), *wishes]


def _guided(member: Member, pulse: Pulse, now: float) -> Member:
    member = replace(member, pulse=pulse, known=max(member.known, pulse.number))
    # Only who is followed guides: another active coordinator may be the other half's.
    if pulse.is_active and pulse.term == member.promised:
        return replace(member, guided_at=now, is_found=True)
    return member


def tick(member: Member, now: float, *, where: str) -> Answer:
    """Ends what must not go on without a coordinator.

    With one candidate the job ends a lease after it was lost; with more, the workers stop after
    two: one to notice, one for the next candidate to take over.

    Args:
        where: the endpoints, for the message.
    """
    silent_s = now - member.guided_at
    if member.closed or not member.is_found:
        return member, []
    if member.num_candidates == 1 and silent_s > member.lease_s and not _is_heard(member):
        reason = (
            f"the node that keeps the rendezvous at {where} is lost; name more than one in "
            "--rdzv-endpoint, and the next one takes over"
        )
        return receive(member, Closed(reason=reason, is_success=False), now)
    if member.at and not member.over and silent_s > 2 * member.lease_s:
        reason = f"no active coordinator at {where} for {silent_s:.1f} s"
        over = Over(id=member.at.id, cause=EndCause.CUT_OFF, reason=reason)
        return _must_leave(member, over), [_note("cut off", member.at.number, reason)]
    return member, []


def forgive(member: Member, pause_s: float) -> Member:
    """Takes back the silence of a while in which this process itself did not run."""
    return replace(member, guided_at=member.guided_at + pause_s)


def _is_heard(member: Member) -> bool:
    # One that gathers is alive, though it leads nobody.
    return member.pulse is not None and not member.pulse.is_active


def lost(member: Member) -> Member:
    """The connection to the coordinator is down."""
    return replace(member, pulse=None, hosting=NO_ROUND)
