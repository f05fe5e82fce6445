"""A node joins, and the workers of the others go on in the next round in their processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.rendezvous.protocol import decide, member
from bundlerun.launcher.rendezvous.protocol.hand_over import goes_on
from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.protocol.state import Rules, State
from tests.unit.launcher.rendezvous.protocol.cluster import Cluster


def joining(**rules: object) -> tuple[Cluster, Round]:
    """Two of three nodes are in a round, and the third has just come."""
    values: dict[str, object] = {"num_candidates": 3, "max_nodes": 3, "hands_over": True}
    made = Cluster(3, Rules(**(values | rules)))  # type: ignore[arg-type]
    made.run(3)
    made.kill(2)
    made.run(6)
    before = made.current()
    made.start(2)
    return made, before


def flow(made: Cluster, seconds: float) -> None:
    """All that is said arrives; workers do nothing."""
    end = made.now + seconds
    while made.now < end:
        made.flush()
        made.tick()


def notes(made: Cluster, since: float) -> list[str]:
    return [event for at, _, event, _ in made.notes if at >= since]


def test_workers_stay_where_they_are_until_all_have_agreed_to_move() -> None:
    made, before = joining()
    flow(made, 2)
    at = made.nodes[2].member.at
    assert at is not None
    assert at.before == before.id
    assert all(node.member.at == at and node.member.is_moving for node in made.nodes.values())
    assert made.complete_rounds() == {before.id}  # it does steps meanwhile
    made.run(2)
    assert made.complete_rounds() == {at.id}
    assert not any(node.member.is_moving for node in made.nodes.values())


def test_no_round_is_over_for_a_node_that_joins() -> None:
    made, _ = joining()
    since = made.now
    made.run(4)
    assert len(made.current().seats) == 3
    assert "coordinator: over" not in notes(made, since)


def test_without_the_setting_all_begin_anew() -> None:
    made, before = joining(hands_over=False)
    since = made.now
    made.run(4)
    assert len(made.current().seats) == 3
    assert made.current().before == ()
    assert "coordinator: over" in notes(made, since)
    assert before.id != made.current().id


def test_who_dies_before_all_have_moved_ends_the_new_round() -> None:
    made, _ = joining()
    flow(made, 2)
    made.kill(1)
    made.run(6)
    assert [seat.name for seat in made.current().seats] == ["n0", "n2"]
    assert made.current().before == ()


def test_a_node_whose_workers_fail_before_they_have_moved_has_all_begin_anew() -> None:
    made, _ = joining()
    flow(made, 2)
    made.want(0)
    made.run(6)
    assert len(made.current().seats) == 3
    assert made.current().before == ()


def test_a_move_that_takes_too_long_is_given_up() -> None:
    made, _ = joining(move_wait_s=5.0)
    flow(made, 4)
    assert all(not node.member.over for node in made.nodes.values())
    flow(made, 3)
    overs = [node.member.over for node in made.nodes.values()]
    assert all(over and "longer than 5 s" in over.reason for over in overs)
    made.run(3)
    assert len(made.current().seats) == 3


def test_another_node_waits_until_all_have_moved() -> None:
    made, _ = joining(max_nodes=4, first_wait_s=1.0)
    made.start(3)
    made.side[3] = 0
    flow(made, 3)
    assert len([id_ for id_ in made.commits if made.rounds[id_][0].before]) == 1
    made.run(4)
    last = made.current()
    assert len(last.seats) == 4
    assert last.before


def test_a_coordinator_that_dies_as_all_are_to_move_leaves_them_a_round() -> None:
    made, _ = joining()
    flow(made, 2)
    (leader,) = made.leaders()
    made.kill(leader)
    made.run(8)
    assert len(made.current().seats) == 2


@pytest.mark.parametrize("dies", [True, False])
def test_a_run_that_ends_before_all_have_moved_is_over_for_those_who_join(dies: bool) -> None:
    made, _ = joining()
    flow(made, 2)
    for index in (0, 1):
        made.nodes[index].member, wishes = member.finished(made.nodes[index].member)
        assert wishes
    flow(made, 1)
    assert not any(node.member.closed for node in made.nodes.values())  # their store is needed
    if dies:
        made.kill(2)
    else:
        made.want(2)
    flow(made, 2)
    for node in made.nodes.values():
        assert node.member.closed is not None
        assert node.member.closed.is_success
        assert "ended before round" in node.member.closed.reason


def cut_off_from_those_who_join(num_new: int) -> None:
    """Three nodes still work in the round before, and are cut off from who joins them."""
    num_nodes = 3 + num_new
    made = Cluster(
        num_nodes,
        Rules(
            num_candidates=num_nodes,
            max_nodes=num_nodes,
            min_nodes=2,
            hands_over=True,
            first_wait_s=1.0,
        ),
    )
    made.run(3)
    for index in range(2, num_nodes):
        made.kill(index)
        made.run(3)
    # The others come while one is on its way, so that all of them go into one round.
    made.start(2)
    flow(made, 1)
    for index in range(3, num_nodes):
        made.start(index)
    flow(made, 1)
    made.agree_to_move()
    for index in range(3):
        made.move(index)
    flow(made, 1)
    assert made.commits[-1] == made.nodes[3].member.at.id  # type: ignore[union-attr]
    made.side = {index: int(index > 2) for index in range(num_nodes)}
    for _ in range(60):
        flow(made, 0.1)
        for index, node in made.nodes.items():
            # The agents of the others have not looked yet: their workers go on.
            if index > 2 and node.member.must_leave and not node.member.closed:
                made.want(index)
        assert sum(made.can_work(id_) for id_ in made.rounds) <= 1


def test_nodes_that_join_cannot_go_on_while_the_others_still_do_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_off_from_those_who_join(3)
    # So it would be with more of them.
    monkeypatch.setattr(decide, "goes_on", lambda *_: True)
    with pytest.raises(AssertionError):
        cut_off_from_those_who_join(4)


def seat(name: str, num_workers: int = 2) -> Seat:
    return Seat(name=name, incarnation=f"i{name}", address="h", num_workers=num_workers)


@pytest.mark.parametrize(
    ("seats", "sizes", "expected"),
    [
        ([seat("a"), seat("b"), seat("c")], (2,), True),
        ([seat("a"), seat("b"), seat("c")], (1,), True),
        ([seat("a"), seat("b"), seat("c")], (4,), False),  # c's ranks make no bundle
        ([seat("a"), seat("b"), seat("c", 4)], (4,), True),
        ([seat("a"), seat("b"), seat("c")], (3,), False),  # spare ranks before
        ([seat("b"), seat("a"), seat("c")], (2,), False),  # in another order
        ([seat(name) for name in "abcd"], (2,), True),
        ([seat(name) for name in "abcde"], (2,), False),  # c, d and e could go on without them
        ([seat("a"), seat("c")], (2,), False),  # one goes
        ([seat("a"), replace(seat("b"), incarnation="new"), seat("c")], (2,), False),
        ([seat("a"), seat("b"), seat("c", 0)], (2,), False),  # nobody knows how many
        ([seat("a"), seat("b"), seat("c")], (2, 1), False),  # another shape may be better
    ],
)
def test_workers_go_on_only_where_their_places_stay(
    seats: list[Seat], sizes: tuple[int, ...], expected: bool
) -> None:
    round_ = Round(term=1, number=1, seats=(seat("a"), seat("b")))
    rules = Rules(hands_over=True, bundle_sizes=sizes, max_nodes=3)
    state = State(rules=rules, base=round_, grounds=(round_,), in_force=round_)
    assert goes_on(state, round_, seats) is expected
    assert not goes_on(replace(state, rules=replace(rules, hands_over=False)), round_, seats)
    assert not goes_on(replace(state, grounds=(round_, round_)), round_, seats)
