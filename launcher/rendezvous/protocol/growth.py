"""Pure: when all stop for nodes that have come, and when these wait, as they come and go.

    n3        in   | out   | in   | out   | in   | out   | waits ........ | in
    the rest     pause   pause  pause   pause  pause   pause            pause
                    stay too short 1       2              held back

A round with more nodes pays once what it does beyond the one before is as much as two pauses cost:
one for coming in, one for going again. A node that has gone sooner than that, some times in a row,
waits for that long before it is taken in again, and twice as long each time after. That is all
that waits: a loss makes the next round at once, with all who are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.protocol.state import Rules, State, Stay
from bundlerun.launcher.rendezvous.protocol.votes import used_ranks

_FREE_STAYS = 2
"""Stays in a row that may be too short: one failure, and another one, are no flapping."""
LONGEST_WAIT_S = 600.0


def worth(rules: Rules, some: Sequence[Seat], others: Sequence[Seat]) -> tuple[float, float]:
    """What two rounds do in a second, in one unit: as foreseen, else by the ranks they use."""
    rates = [_rate(rules, some), _rate(rules, others)]
    if all(rates):
        return rates[0], rates[1]
    sizes = rules.bundle_sizes
    return float(used_ranks(some, sizes)), float(used_ranks(others, sizes))


def _rate(rules: Rules, seats: Sequence[Seat]) -> float:
    counts = tuple(sorted((seat.num_workers for seat in seats), reverse=True))
    return rules.rates.get(counts, 0.0)


def payback_s(pause_s: float, was: float, now: float) -> float:
    """Seconds after which two pauses are made up for by doing `now` a second in place of `was`."""
    return 2 * pause_s * was / (now - was) if now > was else 0.0


def pause_s(state: State) -> float:
    """What all lose by a new round, as the nodes have measured it last; 0: nobody has yet."""
    return max((peer.report.pause_ms for peer in state.peers.values()), default=0) / 1000


def held_back(
    state: State, round_: Round, choice: Sequence[Seat], at: float
) -> Mapping[str, float]:
    """Newcomers of `choice` that are to wait, by name, and for how many seconds more."""
    now, was = worth(state.rules, choice, round_.seats)
    pays_s = payback_s(pause_s(state), was, now)
    found: dict[str, float] = {}
    for seat in choice:
        stay, peer = state.stays.get(seat.name), state.peers.get(seat.name)
        if stay is None or peer is None or round_.has(seat) or stay.num_short < _FREE_STAYS:
            continue
        wait_s = min(pays_s * 2.0 ** (stay.num_short - _FREE_STAYS), LONGEST_WAIT_S)
        left_s = wait_s - (at - peer.came_at)
        if left_s > 0:
            found[seat.name] = left_s
    return found


def counted(state: State, round_: Round, at: float) -> Mapping[str, Stay]:
    """The stays of all nodes, as `round_` comes into force after `state.base`."""
    found = dict(state.stays)
    before = state.base
    here = {seat.name: seat for seat in round_.seats}
    for seat in before.seats if before else ():
        stay = found.get(seat.name)
        if before is None or stay is None or stay.incarnation != seat.incarnation:
            continue
        if seat.name in here and here[seat.name].incarnation == seat.incarnation:
            continue
        # It was in the round before, and is in this one no more, or started again.
        was, now = worth(state.rules, round_.seats, before.seats)
        is_short = state.over_at - stay.since < payback_s(pause_s(state), was, now)
        found[seat.name] = replace(stay, num_short=stay.num_short + 1 if is_short else 0)
    for seat in round_.seats:
        stay = found.get(seat.name, Stay())
        if stay.incarnation != seat.incarnation:
            found[seat.name] = replace(stay, incarnation=seat.incarnation, since=at)
    return found
