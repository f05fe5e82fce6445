"""Pure rules: which round is the last one, who may go on after it, who is to be in the next.

round 4   a b c d e         a cut:   a b | c d e
quorum    3 of 5                     no  | yes         more than half of the round before
round 4   a b c d           a cut:   a b | c d
quorum    2 of 4 with a              yes | no          exactly half: the half with the first
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from bundlerun.launcher.rendezvous.protocol.messages import Report, Round, Seat, Status, id_of
from bundlerun.launcher.rendezvous.protocol.state import Peer, Phase, State


def has_quorum(base: Round, seats: Iterable[Seat]) -> bool:
    """Whether no other nodes of `base` but `seats` can go on after it.

    More than half of it, or half of it with its first node; a node that was started again has no
    memory of the round and so no vote.
    """
    votes = [seat for seat in seats if base.has(seat)]
    first = base.seats[0]
    return 2 * len(votes) > len(base.seats) or (
        2 * len(votes) == len(base.seats)
        # A tie goes to the half with the first node, so that never both go on (I10).
        and any((v.name, v.incarnation) == (first.name, first.incarnation) for v in votes)
    )


def is_agreed(round_: Round, accepted: Collection[str]) -> bool:
    """Whether every seat of a proposed round has accepted it, by name."""
    return all(seat.name in accepted for seat in round_.seats)


def last_round(reports: Collection[Report]) -> Round | None:
    """The last round that may be in force somewhere, as far as these nodes know.

    A round that was accepted here may be in force elsewhere, unless one of its own seats says that
    it never accepted it, and has promised not to do so any more.
    """
    rounds = {
        r.id: r
        for report in reports
        for r in (report.last, report.pending, *report.grounds)
        if r is not None
    }
    # Newest first; a void one cannot hide an older one that is in force.
    for round_ in sorted(rounds.values(), key=lambda r: r.id, reverse=True):
        if not is_void(round_, reports):
            return round_
    return None


def grounds_of(base: Round | None, reports: Collection[Report]) -> tuple[Round, ...]:
    """The rounds of each of which a quorum is needed to go on after `base`.

    One that was in force needs nothing but itself. One that was only accepted may have been in
    force or not, and so may those that it was built on: some other half may go on after any.

        last in force 7: a d c      accepted by a, b only: 8 = a d b
        a b                         a quorum of 8, and none of 7: c d may go on after 7
    """
    if base is None:
        return ()
    lasts = {report.last.id: report.last for report in reports if report.last}
    known = lasts[max(lasts)] if lasts else None
    between = {r.id: r for report in reports for r in report.grounds}
    if known is not None:
        between[known.id] = known
    # What is known to have been in force settles all that came before it.
    floor = id_of(known)
    return (
        *(
            between[id_]
            for id_ in sorted(between)
            if floor <= id_ < base.id and not is_void(between[id_], reports)
        ),
        base,
    )


def is_void(round_: Round, reports: Collection[Report]) -> bool:
    """Whether one of the round's seats is here and proves that it can never be in force."""
    if any(report.last and report.last.id >= round_.id for report in reports):
        # Somebody was in it, or in one after it: then a missing yes proves nothing.
        return False
    return any(
        round_.has(report.seat)
        # It has never accepted the round, and by its promise never will.
        and max(id_of(report.last), id_of(report.pending)) < round_.id
        and report.promised > round_.term
        for report in reports
    )


def may_go_on(state: State, grounds: tuple[Round, ...], peers: list[Peer], now: float) -> bool:
    """Whether nobody else can go on after these rounds, or the fence is to decide that."""
    if state.rules.num_candidates == 1:
        return True
    if not grounds:
        return _may_begin(state, peers, now)
    return all(_may_go_on_after(state, round_, peers, now) for round_ in grounds)


def _may_begin(state: State, peers: list[Peer], now: float) -> bool:
    """Nodes without a memory: of a round that was in force only the fence knows the end."""
    if not highest_known(peers):
        return True
    if not state.rules.has_fence:
        return False
    fenced_by = [peer.report.fenced_by for peer in peers if peer.report.fenced_by]
    if fenced_by:
        # The folder named the round that went on; it is over once all of its nodes are here.
        last = max(fenced_by, key=lambda round_: round_.id)
        return last.is_fenced and is_ended(last, [peer.seat.name for peer in peers])
    return state.phase is Phase.ACTIVE or now - state.since >= state.rules.minority_wait_s


def highest_known(peers: list[Peer]) -> int:
    """The number of the latest round in force that one of these nodes has heard of."""
    return max((peer.report.known for peer in peers), default=0)


def _may_go_on_after(state: State, round_: Round, peers: list[Peer], now: float) -> bool:
    if has_quorum(round_, (peer.seat for peer in peers)):
        return True
    here = {peer.seat.incarnation for peer in peers}
    missing = [seat for seat in round_.seats if seat.incarnation not in here]
    if state.phase is Phase.ACTIVE:
        # More nodes than are here may be alive and want to go on: the larger half goes first.
        is_smaller = 2 * len(missing) > len(round_.seats)
        may_try = not (is_smaller and any(seat.incarnation in state.silent for seat in missing))
    else:
        may_try = (
            # An endpoint that refuses connections has no agent; all others get a while to come.
            all(seat.candidate in state.gone for seat in missing)
            or now - state.since >= state.rules.minority_wait_s
        )
    return bool(peers) and round_.is_fenced and state.rules.has_fence and may_try


def is_ended(round_: Round, names: Collection[str]) -> bool:
    """Whether nobody can be left in a round: each of its nodes is here again.

    Args:
        names: of nodes that follow one coordinator and have no workers in that round; those that
            were started again among them.
    """
    return all(seat.name in names for seat in round_.seats)


def next_term(highest: int, index: int, num_candidates: int, salt: int = 0) -> int:
    """A term above `highest` that belongs to candidate `index`: no two share one.

    Args:
        salt: 0 gives the lowest; a number of the coordinator's own keeps one that was started
            again, and forgot, from taking the same term twice.
    """
    # Term t belongs to candidate t modulo num_candidates.
    lowest = highest + 1 + (index - highest - 1) % num_candidates
    return lowest + salt * num_candidates


def search_order(last_term: int, num_candidates: int) -> list[int]:
    """Candidates in the order in which nodes gather at them.

    Who was in the same round goes on with the candidate after its coordinator, cyclically; who was
    in none begins with the first. Attempts to lead do not count: nodes that followed each attempt
    to the next candidate would never stay together long enough.
    """
    return [(last_term + 1 + step) % num_candidates for step in range(num_candidates)]


def best_candidate(found: Mapping[int, Status], last_term: int, num_candidates: int) -> int | None:
    """The candidate to register with, None where none answers.

    Args:
        found: what those say that answer, by index.
        last_term: the term of the last round that this node was in, -1 for none.
    """
    active = [(each.number, each.term, index) for index, each in found.items() if each.is_active]
    if active:
        return max(active)[2]
    # With what others know: a node without a memory must gather where they do.
    latest = max([last_term, *(each.last_term for each in found.values())])
    return next((i for i in search_order(latest, num_candidates) if i in found), None)


def choose_seats(
    order: Sequence[Seat], *, min_nodes: int, max_nodes: int, bundle_sizes: Sequence[int]
) -> tuple[Seat, ...]:
    """The nodes of the next round; the others are spare. Empty where these do not do.

    Args:
        order: all who are there, survivors of the last round first, in its order.
        bundle_sizes: ranks that a bundle needs, in each shape that will do; nodes without which as
            many ranks are used stay out.
    """
    seats = order[:max_nodes]
    ranks = _ranks(seats, bundle_sizes)
    used = _used(ranks, bundle_sizes)
    if len(seats) < min_nodes or not used:
        return ()
    kept, count = [], len(seats)
    # From the end: survivors keep their seats, and newcomers that add no bundle stay out.
    for seat in reversed(seats):
        rest = ranks - _ranks([seat], bundle_sizes)
        if count > min_nodes and _used(rest, bundle_sizes) == used:
            ranks, count = rest, count - 1
        else:
            kept.append(seat)
    return tuple(reversed(kept))


def _ranks(seats: Sequence[Seat], bundle_sizes: Sequence[int]) -> int:
    """Ranks of all; a node that has not said how many it has counts as one bundle."""
    return sum(seat.num_workers or bundle_sizes[0] for seat in seats)


def _used(ranks: int, bundle_sizes: Sequence[int]) -> int:
    """Ranks that whole bundles use, of the shape that uses the most."""
    return max(ranks // size * size for size in bundle_sizes)


def used_ranks(seats: Sequence[Seat], bundle_sizes: Sequence[int]) -> int:
    """Ranks of these nodes that whole bundles use, of the shape that uses the most."""
    return _used(_ranks(seats, bundle_sizes), bundle_sizes)
