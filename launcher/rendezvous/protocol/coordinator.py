"""Pure: what a coordinator knows and decides. Events go in, its next state and its wishes come out.

           enough nodes of the last round        all who are here follow
    GATHERING ----------------------> ELECTING ----------------------> ACTIVE ----> CLOSED
        ^                                 |  there is a higher term       |  the job is over
        +---------------------------------+-------------------------------+
                                             no quorum any more

    ACTIVE, one round:  [1] claim ---> [2] host ---> [3] accept ---> [4] in force ---> over ---> [1]
                        with a fence   first seat    all seats       nobody dies,      all come
                                                                     joins, asks

`receive` takes in what happened, `settle` then does all that is due; it may be called at any time
and as often as one likes. Time is an argument: monotonic seconds of this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from bundlerun.launcher.rendezvous.protocol.events import (
    Arrived,
    Broken,
    Claimed,
    Event,
    Expired,
    Looked,
    Received,
)
from bundlerun.launcher.rendezvous.protocol.messages import (
    Accept,
    Beat,
    Close,
    Closed,
    Fenced,
    Hosted,
    Lead,
    Leave,
    Report,
    Round,
    RoundId,
    id_of,
)
from bundlerun.launcher.rendezvous.protocol.state import Peer, Phase, Proposal, State, Step
from bundlerun.launcher.rendezvous.protocol.votes import (
    grounds_of,
    highest_known,
    is_ended,
    is_void,
    last_round,
)
from bundlerun.launcher.rendezvous.protocol.wishes import Note, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class TryClaim:
    """Claim a number in the fence folder.

    Attributes:
        after: the number of the base, which the round comes after; 0 without a base.
        round: what is claimed.
        void: claims that can never be in force, to be passed over.
        seen: a round that these nodes have heard of and do not remember; the folder must have it,
            or a later one. 0: none.
    """

    after: int
    round: Round
    void: frozenset[RoundId]
    seen: int = 0

    @property
    def is_first(self) -> bool:
        """Whether these nodes know of no round, so that claims may be those of an earlier job."""
        return not self.after and not self.seen


Wish: TypeAlias = Send | TryClaim | Note


def receive(state: State, event: Event, now: float) -> tuple[State, list[Wish]]:
    """Takes in what happened; decides nothing yet."""
    match event:
        case Arrived(report=report):
            return _arrive(state, report, now)
        case Expired(name=name):
            return _expire(state, name)
        # Not lost yet: it has the grace to come back.
        case Broken(name=name) if name in state.peers:
            return _with_peer(state, replace(state.peers[name], broken_at=now)), []
        case Received(name=name, message=message) if name in state.peers:
            return _hear(state, state.peers[name], message, now)
        case Received(message=Report() as report):
            return _arrive(state, report, now)
        case Received(name=name, message=Beat()):  # forgotten here: it is to say all again
            return state, [Send(to=name, message=Lead(term=-1))]
        case Claimed():
            return _claimed(state, event, now)
        case Looked():
            return _look(state, event, now)
    return state, []


def is_news(state: State, event: Event) -> bool:
    """Whether there is anything in it; nearly all beats only say that their node lives.

    Such a beat need not be handed to `receive`, as long as what a node says comes in its order:
    only its serial number would be kept, by which older messages are told from newer ones.
    """
    match event:
        case Received(name=name, message=Beat() as beat) if name in state.peers:
            peer = state.peers[name]
            report = peer.report
            is_same = (
                beat.serial > report.serial
                and beat.promised <= state.highest_term
                and beat.last == id_of(report.last)
                and beat.at == report.at
                and beat.is_waiting == report.is_waiting
                and beat.is_done == report.is_done
                and beat.is_moving == report.is_moving
                and beat.pause_ms == report.pause_ms
            )
            # What it was told has to be told again where it has not come of it.
            return not is_same or peer.sent is not None
    return True


def _with_peer(state: State, peer: Peer) -> State:
    return replace(state, peers={**state.peers, peer.seat.name: peer})


def lose(state: State, name: str, why: str, *, is_fault: bool = True) -> tuple[State, list[Wish]]:
    """Forgets a node: this start of it is dead, whatever it may still say.

    Args:
        why: what it does or what is wrong with it, to stand after its name.
        is_fault: it did not go of its own accord.
    """
    if name not in state.peers:
        return state, []
    peers = dict(state.peers)
    lost = {**state.lost, peers.pop(name).seat.incarnation: why}
    details = {"why": f"node {name} {why}", "lost": name if is_fault else ""}
    return replace(state, peers=peers, lost=lost), [
        Note(event="coordinator: lost", details=details)
    ]


def _expire(state: State, name: str) -> tuple[State, list[Wish]]:
    if name in state.peers:
        # Silence may be a cut cable with a living node at its other end; other losses are certain.
        incarnation = state.peers[name].seat.incarnation
        state = replace(state, silent=state.silent | {incarnation})
    return lose(state, name, "is silent")


def _arrive(state: State, report: Report, now: float) -> tuple[State, list[Wish]]:
    old = state.peers.get(report.seat.name)
    is_back = old is not None and old.seat.incarnation == report.seat.incarnation
    # A short break of the connection must not cost a newcomer its place in the order.
    arrival = old.arrival if old and is_back else state.num_arrivals
    peer = Peer(
        report=report,
        arrival=arrival,
        sees_no_fence=bool(old and is_back and old.sees_no_fence),
        came_at=old.came_at if old and is_back else now,
    )
    # Waits that count from `since` begin with the first node, not with the coordinator.
    if not state.peers and state.phase is Phase.GATHERING:
        state = replace(state, since=now)
    # Who reports is alive, whatever others have found at its endpoint.
    gone = (state.gone | set(report.gone)) - {report.seat.candidate}
    state = replace(
        _with_peer(state, peer),
        num_arrivals=state.num_arrivals + 1,
        gone=gone,
        lost=_without(state.lost, report.seat.incarnation),
        silent=state.silent - {report.seat.incarnation},
        highest_term=max(state.highest_term, report.promised),
    )
    details = {"node": report.seat.name, "is_back": is_back, "from_round": report.at[1]}
    return state, [Note(event="coordinator: came", details=details)]


def _without(lost: Mapping[str, str], incarnation: str) -> Mapping[str, str]:
    # Nearly all who come were not lost.
    return {k: why for k, why in lost.items() if k != incarnation} if incarnation in lost else lost


def _hear(
    state: State, peer: Peer, message: Report | Beat | Hosted | Accept | Leave | Close, now: float
) -> tuple[State, list[Wish]]:
    match message:
        # Only newer ones: a message that was overtaken would undo a later one.
        case Report() if message.serial > peer.report.serial:
            state = _with_peer(state, replace(peer, report=message, sent=None))
            return replace(
                state,
                gone=state.gone | (set(message.gone) - {peer.seat.candidate}),
                highest_term=max(state.highest_term, message.promised),
            ), []
        case Beat() if message.serial > peer.report.serial:
            return _beat(state, peer, message)
        case Hosted() | Accept():
            return _progress(state, peer, message), []
        case Leave():
            return _leave(state, peer, message)
        case Close() if state.closed is None:
            return close(state, message.reason, message.is_success)
    return state, []


def _beat(state: State, peer: Peer, beat: Beat) -> tuple[State, list[Wish]]:
    report = replace(
        peer.report,
        serial=beat.serial,
        at=beat.at,
        is_waiting=beat.is_waiting,
        is_done=beat.is_done,
        is_moving=beat.is_moving,
        pause_ms=beat.pause_ms,
    )
    # A beat carries ids only; the rounds themselves are known here.
    for round_ in (state.in_force, state.base):
        if round_ and round_.id == beat.last:
            report = replace(report, last=round_)
    # What it was told and still lacks has not reached it: it is told again.
    state = _with_peer(state, replace(peer, report=report, sent=None))
    return replace(state, highest_term=max(state.highest_term, beat.promised)), []


def _progress(state: State, peer: Peer, message: Hosted | Accept) -> State:
    proposal, name = state.proposal, peer.seat.name
    # An answer to a proposal that was abandoned in the meantime.
    if proposal is None or proposal.round.id != message.id or not proposal.round.has(peer.seat):
        return state
    if isinstance(message, Hosted):
        # [2] The store listens: its port is part of what the seats are asked to accept.
        is_first = proposal.round.seats[0].name == name
        if proposal.step is not Step.HOST or not is_first:
            return state
        round_ = replace(proposal.round, store_port=message.port)
        return replace(state, proposal=replace(proposal, round=round_, step=Step.ACCEPT))
    if proposal.step is not Step.ACCEPT:
        return state
    # That node does not see the shared folder: the next proposal goes without the fence.
    if not message.sees_fence:
        return replace(_with_peer(state, replace(peer, sees_no_fence=True)), proposal=None)
    # [3] One yes more; `settle` puts the round in force once all seats have said it.
    return replace(state, proposal=replace(proposal, accepted=proposal.accepted | {name}))


def _leave(state: State, peer: Peer, leave: Leave) -> tuple[State, list[Wish]]:
    name = peer.seat.name
    state, notes = lose(state, name, f"leaves: {leave.reason}", is_fault=leave.is_failure)
    # Who gave up does not come back: with too few left, waiting would be in vain (I9).
    missing = state.rules.min_nodes - len(state.peers)
    if not leave.is_failure or missing <= 0 or state.phase is not Phase.ACTIVE:
        return state, notes
    reason = (
        f"node {name} gave up ({leave.reason}), and {len(state.peers)} nodes are left where the "
        f"job needs {state.rules.min_nodes}"
    )
    state, more = close(state, reason, is_success=False)
    return state, [*notes, *more]


def close(
    state: State, reason: str, is_success: bool, *, is_difference: bool = False
) -> tuple[State, list[Wish]]:
    """The job is over for all who are here."""
    closed = Closed(reason=reason, is_success=is_success, is_difference=is_difference)
    state = replace(state, phase=Phase.CLOSED, closed=closed, in_force=None, proposal=None)
    details = {"reason": reason, "is_success": is_success}
    return state, [Note(event="coordinator: closed", details=details)]


def _claimed(state: State, event: Claimed, now: float) -> tuple[State, list[Wish]]:
    proposal = state.proposal
    # The claim was made in a thread; its proposal may have been given up in the meantime.
    if proposal is None or proposal.step is not Step.CLAIM or event.term != state.term:
        return state, []
    if event.number:
        # [1] The folder may give a later number than was asked for.
        round_ = replace(proposal.round, number=event.number)
        proposal = replace(proposal, round=round_, step=Step.HOST, claimed_at=event.at)
        state = replace(state, proposal=proposal)
        return replace(state, highest_number=max(state.highest_number, event.number)), []
    if event.error:
        return _without_fence(state, event.error, now)
    if event.over:
        return close(state, event.over.reason, event.over.is_success)
    if event.highest_term > state.term:  # the numbers of the fence and the terms grow together
        return replace(state, highest_term=event.highest_term), []
    stands = _in_the_way(state, event.others)
    if stands:
        return _fence_off(state, stands, now)
    # Nobody can be in those others: claim again, past them.
    void = proposal.void | {claim.id for claim in event.others}
    proposal = replace(proposal, void=void)
    return replace(state, proposal=proposal), [try_claim(state, proposal)]


def _in_the_way(state: State, claims: Iterable[Round]) -> Round | None:
    """The last claim that may be in force somewhere else."""
    reports = [peer.report for peer in state.followers]
    found = None
    for round_ in claims:
        # Each of these proves that nobody can be in the round: this coordinator would know it; a
        # seat of it never accepted it, and no more will; all its seats are here, and not in it.
        names = [report.seat.name for report in reports if report.at != round_.id]
        is_nothing = (
            round_.term == state.term
            or (state.base is not None and is_void(round_, reports))
            or (round_.is_fenced and is_ended(round_, names))
        )
        found = found if is_nothing else round_
    return found


def _look(state: State, event: Looked, now: float) -> tuple[State, list[Wish]]:
    """Others may have ended the job, or taken this half for an earlier one and gone on."""
    proposal, round_ = state.proposal, state.base
    if event.over and round_ and round_.is_fenced:  # before a first round it is of an earlier job
        return close(state, event.over.reason, event.over.is_success)
    # A claim that is made already is our latest round, in force or not.
    if proposal and proposal.step is not Step.CLAIM:
        round_ = proposal.round
    if round_ is None or not round_.is_fenced:
        return state, []
    stands = _in_the_way(state, [claim for claim in event.claims if claim.number > round_.number])
    return _fence_off(state, stands, now) if stands else (state, [])


def try_claim(state: State, proposal: Proposal) -> TryClaim:
    """The wish for a place in the fence folder, after the base."""
    if state.base:
        return TryClaim(after=state.base.number, round=proposal.round, void=proposal.void)
    seen = highest_known(state.followers)
    after = max(0, seen - 1)  # who claimed it had found what came before over
    return TryClaim(after=after, round=proposal.round, void=proposal.void, seen=seen)


def _without_fence(state: State, error: str, now: float) -> tuple[State, list[Wish]]:
    """A fence that cannot be used stops those that it binds, and nobody else."""
    # After a fenced round only the folder may decide who goes on: try again later (I10).
    is_bound = any(round_.is_fenced for round_ in state.grounds)
    rules = state.rules if is_bound else replace(state.rules, has_fence=False)
    retry_at = now + state.rules.lease_s if is_bound else now
    state = replace(state, proposal=None, rules=rules, retry_at=retry_at, waits_for=error)
    return state, [Note(event="coordinator: no fence", details={"error": error})]


def _fence_off(state: State, by: Round, now: float) -> tuple[State, list[Wish]]:
    names = [peer.seat.name for peer in state.followers]
    reason = (
        f"other nodes of this job go on as round {by.number}, as the fence folder says; this half "
        f"({', '.join(names)}) has stopped and joins them once it reaches them"
    )
    message = Fenced(term=state.term, by=by, reason=reason)
    wishes: list[Wish] = [Send(to=name, message=message) for name in names]
    state = replace(
        state,
        phase=Phase.GATHERING,
        since=now,
        # They come again as newcomers, with no memory of these rounds.
        peers={},
        base=None,
        grounds=(),
        in_force=None,
        proposal=None,
        num_there_at=None,
    )
    return state, [
        *wishes,
        Note(event="coordinator: fenced", details={"number": by.number, "nodes": names}),
    ]


def history(peers: Iterable[Peer], term: int) -> tuple[Round | None, tuple[Round, ...]]:
    """What these nodes know, once they all have promised `term`: the last round, its grounds."""
    # As they will be: the promise makes proposals of earlier terms void.
    reports = [replace(peer.report, promised=term) for peer in peers]
    base = last_round(reports)
    return base, grounds_of(base, reports)
