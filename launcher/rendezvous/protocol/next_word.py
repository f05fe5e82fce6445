"""Pure: what a coordinator has to tell a node, given what it knows of it."""

from __future__ import annotations

from dataclasses import replace

from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.rendezvous.protocol.messages import (
    NO_ROUND,
    Go,
    Host,
    Lead,
    Over,
    Propose,
    ToMember,
    id_of,
)
from bundlerun.launcher.rendezvous.protocol.state import Peer, Phase, Proposal, State, Step

_LEFT_OUT = Over(id=NO_ROUND, cause=EndCause.LEFT_OUT, reason="it was not in the last round")


def next_word(state: State, peer: Peer) -> ToMember | None:
    """What this node has to hear; None where it is as it should be."""
    report = peer.report
    if state.closed:
        return state.closed
    if state.phase is Phase.GATHERING:
        return None
    # Before all else: only a node that follows this term acts on its rounds.
    if report.promised < state.term:
        return Lead(term=state.term)
    round_, proposal = state.in_force, state.proposal
    # Its workers go on in the round in force, which it has not heard yet.
    comes = round_ is not None and round_.before == report.at and round_.has(peer.seat)
    is_elsewhere = report.at not in (NO_ROUND, id_of(round_)) and not (
        report.is_waiting or report.is_done or comes
    )
    if is_elsewhere and state.phase is Phase.ACTIVE:
        # Out of the old round first: its workers must not run next to those of a new one.
        return replace(state.over or _LEFT_OUT, id=report.at)
    if proposal and proposal.round.has(peer.seat):
        return _next_step(state, proposal, peer)
    if round_ and round_.has(peer.seat):
        is_in = report.at == round_.id or id_of(report.last) == round_.id
        return None if is_in else Go(term=state.term, round=round_)
    return None


def _next_step(state: State, proposal: Proposal, peer: Peer) -> ToMember | None:
    round_, name = proposal.round, peer.seat.name
    if proposal.step is Step.HOST and round_.seats[0].name == name:
        return Host(round=round_)
    if proposal.step is Step.ACCEPT and name not in proposal.accepted:
        return Propose(round=round_, grounds=state.grounds)
    return None
