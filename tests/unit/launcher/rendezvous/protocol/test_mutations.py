"""What happens when a rule is broken: each broken rule, and a schedule in which that is seen.

The same schedules pass with the rules as they are. `test_model` finds these in its own schedules
too, each within some hundred of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import pytest

from bundlerun.launcher.rendezvous.protocol import (
    coordinator,
    decide,
    member,
    missing,
    standing,
    votes,
)
from bundlerun.launcher.rendezvous.protocol.messages import (
    Accept,
    Lead,
    Propose,
    Report,
    Round,
    Seat,
    ToMember,
)
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.state import Rules
from bundlerun.launcher.rendezvous.protocol.votes import has_quorum, last_round
from bundlerun.launcher.rendezvous.protocol.wishes import Send
from tests.unit.launcher.rendezvous.protocol.cluster import Cluster

FOREVER_S = 1e9


def cluster(num_nodes: int) -> Cluster:
    """All nodes in their first round."""
    rules = Rules(
        num_candidates=num_nodes, max_nodes=num_nodes, first_wait_s=FOREVER_S, hands_over=True
    )
    made = Cluster(num_nodes, rules)
    made.run(3)
    return made


def until(made: Cluster, is_so: Callable[[], bool]) -> None:
    """A worker has failed; what makes the next round arrives, until `is_so`."""
    made.want(1)
    for _ in range(500):
        for index, node in list(made.nodes.items()):
            if node.member.must_leave:
                made.want(index)
        if is_so():
            return
        moving = made.moving()
        if moving:
            made.deliver(*moving[0])
        else:
            made.tick(0.01)
    raise AssertionError("it never came to this")


def a_coordinator_dies_once_its_round_is_in_force(made: Cluster) -> None:
    (leader,) = made.leaders()
    until(made, lambda: len(made.ledger.commits) == 2)
    ends = made.ledger.commits[-1]
    made.kill(leader)
    made.run(6)
    after = made.current()
    assert len(after.seats) == len(made.nodes)
    assert made.rounds[after.id][1] == ends.id, "nobody remembers the last round"


def the_words_of_an_old_coordinator_come_again(made: Cluster) -> None:
    (leader,) = made.leaders()
    old = {index: list(node.heard) for index, node in made.nodes.items() if index != leader}
    made.kill(leader)
    made.run(6)
    before = made.current()
    for index, words in old.items():
        made.want(index)
        made.nodes[index].heard = words
        for place in range(len(words)):
            made.say_again(index, place)
    made.run(6)
    assert made.current().number > before.number


def a_few_are_cut_off(made: Cluster) -> None:
    first = made.current().seats
    alone = [int(seat.name[1:]) for seat in first[len(first) // 2 :][:2]]
    for index in alone:
        made.side[index] = 1
    made.run(10)
    assert len(made.current().seats) == len(first) - 2
    made.heal()
    made.run(10)
    assert len(made.current().seats) == len(first)


def more_than_half_are_started_again(made: Cluster) -> None:
    for index in list(made.nodes)[1:]:
        made.kill(index)
        made.start(index)
    made.run(10)
    assert not made.complete_rounds()


def hand_over(made: Cluster) -> None:
    """A node comes back, until the workers of all others are to go on in the round with it."""
    index = max(made.nodes)
    made.kill(index)
    made.run(6)
    num_commits = len(made.ledger.commits)
    made.start(index)
    for _ in range(500):
        if len(made.ledger.commits) > num_commits:
            assert made.ledger.commits[-1].before
            return
        moving = made.moving()
        if moving:
            made.deliver(*moving[0])
        else:
            made.tick(0.01)
    raise AssertionError("nobody hands over")


def a_worker_fails_as_all_are_to_go_on(made: Cluster) -> None:
    hand_over(made)
    made.want(1)
    made.run(6)
    assert len(made.current().seats) == len(made.nodes)


def another_node_joins_before_all_have_moved(made: Cluster) -> None:
    made.kill(2)
    made.run(6)
    hand_over(made)
    for _ in range(3):
        made.flush()
        made.tick()
    made.start(2)
    for _ in range(10):
        made.flush()
        made.tick()
    made.run(6)
    assert len(made.current().seats) == len(made.nodes)


def commit_after_one_accept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide, "is_agreed", lambda round_, accepted: len(accepted) >= 1)


def ignore_pending_rounds(patch: pytest.MonkeyPatch) -> None:
    def forgets(reports: Collection[Report]) -> Round | None:
        return last_round([replace(report, pending=None, grounds=()) for report in reports])

    patch.setattr(coordinator, "last_round", forgets)


def follow_a_lower_term(patch: pytest.MonkeyPatch) -> None:
    receive = member.receive

    def obeys(me: Member, message: ToMember, now: float) -> member.Answer:
        if isinstance(message, Lead):
            return receive(replace(me, promised=min(me.promised, message.term)), message, now)
        return receive(me, message, now)

    patch.setattr(member, "receive", obeys)


def accept_a_lower_term(patch: pytest.MonkeyPatch) -> None:
    receive = member.receive

    def accepts(me: Member, message: ToMember, now: float) -> member.Answer:
        if isinstance(message, Propose) and message.round.term < me.promised:
            return me, [Send(message=Accept(id=message.round.id, sees_fence=True))]
        return receive(me, message, now)

    patch.setattr(member, "receive", accepts)


def count_a_dead_nodes_vote(patch: pytest.MonkeyPatch) -> None:
    quorum(patch, lambda base, seats: has_quorum(base, [*seats, base.seats[-1]]))


def newcomers_vote(patch: pytest.MonkeyPatch) -> None:
    quorum(patch, lambda base, seats: 2 * len(list(seats)) > len(base.seats))


def a_restarted_node_votes(patch: pytest.MonkeyPatch) -> None:
    def by_name(base: Round, seats: Iterable[Seat]) -> bool:
        here = {seat.name for seat in seats}
        return has_quorum(base, [seat for seat in base.seats if seat.name in here])

    quorum(patch, by_name)


def half_is_enough(patch: pytest.MonkeyPatch) -> None:
    quorum(patch, lambda base, seats: 2 * sum(map(base.has, seats)) >= len(base.seats))


def quorum(patch: pytest.MonkeyPatch, rule: Callable[[Round, Iterable[Seat]], bool]) -> None:
    for module in (votes, decide, missing):
        patch.setattr(module, "has_quorum", rule)


def workers_that_have_left_go_on(patch: pytest.MonkeyPatch) -> None:
    may_come = standing.Member.may_come
    patch.setattr(
        standing.Member,
        "may_come",
        lambda me, round_: me.is_waiting or may_come(me, round_),
    )


def nobody_waits_for_who_moves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide, "is_settled", lambda state, round_: True)


SEEN = [
    (commit_after_one_accept, a_coordinator_dies_once_its_round_is_in_force, 3),
    (ignore_pending_rounds, a_coordinator_dies_once_its_round_is_in_force, 3),
    (follow_a_lower_term, the_words_of_an_old_coordinator_come_again, 3),
    (accept_a_lower_term, the_words_of_an_old_coordinator_come_again, 3),
    (count_a_dead_nodes_vote, a_few_are_cut_off, 4),
    (half_is_enough, a_few_are_cut_off, 4),
    (newcomers_vote, more_than_half_are_started_again, 3),
    (a_restarted_node_votes, more_than_half_are_started_again, 3),
    (workers_that_have_left_go_on, a_worker_fails_as_all_are_to_go_on, 4),
    (nobody_waits_for_who_moves, another_node_joins_before_all_have_moved, 4),
]


@pytest.mark.parametrize(("mutation", "schedule", "num_nodes"), SEEN)
def test_the_model_notices(
    mutation: Callable[[pytest.MonkeyPatch], None],
    schedule: Callable[[Cluster], None],
    num_nodes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule(cluster(num_nodes))
    made = cluster(num_nodes)
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        schedule(made)
