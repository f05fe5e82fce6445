"""Pure: who is here and in which order, who need not be waited for, what a round waits for."""

from __future__ import annotations

from bundlerun.launcher.rendezvous.protocol.messages import Seat
from bundlerun.launcher.rendezvous.protocol.state import Peer, State
from bundlerun.launcher.rendezvous.protocol.votes import has_quorum, highest_known


def missing(state: State, choice: tuple[Seat, ...], now: float) -> str:
    """What the next round still waits for; empty when nothing is missing."""
    rules, base = state.rules, state.base
    # [1] nodes of the last round that may be alive
    for seat in base.seats if base else ():
        if seat.name not in state.peers and not is_dead(state, seat, now):
            return f"node {seat.name} may come back"
    # [2] nodes that are here and have not stopped their workers
    if base and now - state.over_at < rules.stop_wait_s:
        for peer in state.peers.values():
            is_ready = peer.report.is_waiting or peer.report.is_done
            if not is_ready or peer.report.promised != state.term:
                return f"node {peer.seat.name} stops its workers"
    # [3] enough nodes for a bundle, and among them a quorum
    if not choice:
        return _too_few(state)
    if rules.num_candidates > 1 and not all(
        each.is_fenced or has_quorum(each, choice) for each in state.grounds
    ):
        return "the nodes that hold the majority do not make a bundle"
    # [4] more nodes for a first round, for a while
    num_come = sum(peer.report.is_waiting for peer in state.followers)
    # Those who were in a round before come back by themselves or not at all.
    if base or highest_known(state.followers) or num_come >= rules.max_nodes:
        return ""
    assert state.num_there_at is not None
    if now - state.num_there_at >= rules.first_wait_s:
        return ""
    return (
        f"{num_come} of at most {rules.max_nodes} nodes are here; the first round waits "
        f"{rules.first_wait_s:g} s for more"
    )


def _too_few(state: State) -> str:
    rules = state.rules
    come = [peer.seat for peer in in_order(state) if peer.report.is_waiting]
    names = ", ".join(seat.name for seat in come)
    if len(come) < rules.min_nodes:
        return f"{len(come)} of at least {rules.min_nodes} nodes are here ({names})"
    ranks = sum(seat.num_workers for seat in come)
    return f"{ranks} ranks are here ({names}), a bundle needs {min(rules.bundle_sizes)}"


def is_dead(state: State, seat: Seat, now: float) -> bool:
    """Whether a node that is not here need not be waited for."""
    return (
        seat.name in state.peers  # started again
        or seat.incarnation in state.lost
        or seat.candidate in state.gone
        # A new coordinator gives the nodes of the last round one lease to find it.
        or now - state.since >= state.rules.lease_s
    )


def in_order(state: State) -> list[Peer]:
    """Survivors as they sat in the last round, then newcomers as they came."""
    base = state.base
    names = [seat.name for seat in base.seats] if base else []
    place = {name: index for index, name in enumerate(names)}
    followers = state.followers  # in order of arrival, and the sort is stable
    return sorted(followers, key=lambda peer: place.get(peer.seat.name, len(place)))
