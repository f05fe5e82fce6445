"""Pure: whether the workers of a round can go on in the next one, in their processes."""

from __future__ import annotations

from collections.abc import Sequence

from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.protocol.state import State


def goes_on(state: State, round_: Round, seats: Sequence[Seat]) -> bool:
    """Whether the ranks of `round_` keep their places where `seats` are the next round.

    So all of them stay, in their order, the others come behind them, and both make whole bundles.
    Those others are no quorum of the next round by themselves: they have no state yet, and the
    workers of the rest would go on with steps in the round before (I10).
    """
    rules = state.rules
    if not rules.hands_over or len(rules.bundle_sizes) > 1 or state.grounds != (round_,):
        return False
    stays = [(seat.name, seat.incarnation) for seat in seats[: len(round_.seats)]]
    if stays != [(seat.name, seat.incarnation) for seat in round_.seats]:
        return False
    if 2 * (len(seats) - len(round_.seats)) > len(seats):
        return False
    counts = [seat.num_workers for seat in seats]
    size, num_before = rules.bundle_sizes[0], sum(counts[: len(round_.seats)])
    return all(counts) and not num_before % size and not sum(counts) % size


def is_settled(state: State, round_: Round) -> bool:
    """Whether all nodes of a round in force are here, with their workers in it and at work."""
    for seat in round_.seats:
        peer = state.peers.get(seat.name)
        if peer is None or peer.seat.incarnation != seat.incarnation or peer.broken_at is not None:
            return False
        report = peer.report
        is_in = report.at == round_.id and not (report.is_moving or report.is_done)
        if not is_in or report.promised != state.term:
            return False
    return True


def ended_before(state: State, round_: Round) -> str:
    """Why the job is over for who has come into `round_`; empty where it is not.

    Workers that have finished on their way into a round have done so in the one before, which all
    do together: nobody comes from there any more.
    """
    peers = [state.peers.get(seat.name) for seat in round_.seats]
    done = [peer for peer in peers if peer and peer.report.is_done and peer.report.is_moving]
    names = ", ".join(peer.seat.name for peer in done)
    return f"the workers of node {names} ended before round {round_.number} began" if done else ""
