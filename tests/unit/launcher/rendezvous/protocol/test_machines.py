"""Coordinator and members in a cluster without sockets: one fault after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.rendezvous.protocol import coordinator, decide, member
from bundlerun.launcher.rendezvous.protocol.events import Received
from bundlerun.launcher.rendezvous.protocol.messages import NO_ROUND, Beat, id_of
from bundlerun.launcher.rendezvous.protocol.standing import Waiting
from bundlerun.launcher.rendezvous.protocol.state import Rules
from tests.unit.launcher.rendezvous.protocol.cluster import Cluster


def cluster(num_nodes: int = 3, **rules: object) -> Cluster:
    """All nodes in their first round."""
    values: dict[str, object] = {"num_candidates": num_nodes, "max_nodes": num_nodes}
    made = Cluster(num_nodes, Rules(**(values | rules)))  # type: ignore[arg-type]
    made.run(3)
    return made


def names(made: Cluster) -> list[str]:
    return [seat.name for seat in made.current().seats]


def test_the_first_round_begins_at_once_when_all_are_there() -> None:
    made = cluster()
    assert sorted(names(made)) == ["n0", "n1", "n2"]
    assert next(note[0] for note in made.notes if note[2] == "coordinator: round") < 0.5
    assert len(made.leaders()) == 1


def test_the_first_round_waits_for_more_nodes_only_so_long() -> None:
    made = cluster(min_nodes=2, max_nodes=4, first_wait_s=5)
    assert not made.commits
    made.run(4)
    assert len(names(made)) == 3


def test_survivors_keep_their_order_when_a_node_dies() -> None:
    made = cluster()
    dead = made.current().seats[1]
    order = [name for name in names(made) if name != dead.name]
    made.kill(int(dead.name[1:]))
    made.run(2)
    assert names(made) == order


@pytest.mark.parametrize("num_nodes", [2, 3, 5])
def test_the_next_candidate_takes_over_from_a_dead_coordinator(num_nodes: int) -> None:
    made = cluster(num_nodes)
    leader = made.leaders()[0]
    made.kill(leader)
    made.run(4)
    # Half of two nodes: the first one goes on, here the one that is left only by chance.
    if num_nodes > 2:
        assert len(names(made)) == num_nodes - 1
        assert len(made.leaders()) == 1


def test_a_node_that_asks_ends_the_round_for_all() -> None:
    made = cluster()
    before = made.current()
    made.want(1)
    made.run(1)
    after = made.current()
    assert after.number == before.number + 1
    assert after.seats == before.seats


def test_a_newcomer_comes_last_and_a_node_too_many_is_spare() -> None:
    made = Cluster(4, Rules(num_candidates=1, max_nodes=3))
    made.run(1)
    first = names(made)
    (spare,) = [i for i, node in made.nodes.items() if node.member.is_spare]
    made.run(5)
    assert len(made.commits) == 1
    made.kill(int(first[1][1:]) if first[1] != "n0" else int(first[2][1:]))
    made.run(1)
    assert names(made)[-1] == f"n{spare}"
    assert len(names(made)) == 3


def test_nodes_that_make_no_bundle_more_are_spare() -> None:
    made = cluster(3, max_nodes=3, bundle_sizes=(2,))
    assert len(names(made)) == 2


def test_a_frozen_coordinator_is_a_dead_one_and_does_not_come_back_as_one() -> None:
    made = cluster()
    leader = made.leaders()[0]
    made.freeze(leader)
    made.run(5)
    assert len(names(made)) == 2
    made.thaw(leader)
    made.run(5)
    assert len(names(made)) == 3
    assert len(made.leaders()) == 1
    assert made.leaders() != [leader]


def test_only_the_half_with_the_majority_goes_on_and_the_other_comes_back() -> None:
    made = cluster(5)
    leader = made.leaders()[0]
    alone = [leader, (leader + 1) % 5]
    for index in alone:
        made.side[index] = 1
    made.run(6)
    assert len(names(made)) == 3
    assert all(made.nodes[index].member.at is None for index in alone)
    made.side = dict.fromkeys(made.side, 0)
    made.run(6)
    assert len(names(made)) == 5


def test_without_a_majority_the_fence_lets_one_half_go_on() -> None:
    made = cluster(4, has_fence=True)
    for index in (0, 1):
        made.side[index] = 1
    made.run(8)
    half = names(made)
    assert len(half) == 2
    made.run(8)
    assert names(made) == half
    made.side = dict.fromkeys(made.side, 0)
    made.run(8)
    assert len(names(made)) == 4


def test_with_the_fence_a_single_survivor_goes_on() -> None:
    made = cluster(3, has_fence=True)
    for index in (0, 1):
        made.kill(index)
    made.run(10)
    assert names(made) == ["n2"]


def test_a_coordinator_that_is_cut_off_leaves_the_fence_to_the_larger_half() -> None:
    made = cluster(3, has_fence=True)
    (leader,) = made.leaders()
    made.side[leader] = 1
    made.run(8)
    assert len(names(made)) == 2
    assert f"n{leader}" not in names(made)
    assert made.nodes[leader].member.at is None


def test_a_node_that_came_later_does_not_count_as_one_that_ended() -> None:
    made = Cluster(3, Rules(num_candidates=3, max_nodes=3, has_fence=True))
    for index in (1, 2):
        made.kill(index)
    made.run(1)
    assert made.nodes[0].member.gone == (1, 2)
    for index in (1, 2):
        made.start(index)
    made.run(3)
    (leader,) = made.leaders()
    assert leader == 0
    made.side[leader] = 1
    made.run(8)
    assert len(names(made)) == 2


def test_nodes_go_on_without_those_that_the_fence_let_go_on_once_these_are_started_again() -> None:
    made = cluster(3, has_fence=True, bundle_sizes=(2,))
    made.kill(2)
    made.start(2, num_workers=2)
    made.run(5)
    for index in (0, 1):
        made.side[index] = 1
    made.run(1)
    made.kill(0)
    made.run(10)
    assert names(made) == ["n2"]
    made.kill(2)
    made.heal()
    made.run(10)
    assert made.complete_rounds() == set()
    made.start(2, num_workers=2)
    made.run(10)
    assert names(made) == ["n2"]


def test_a_spare_node_goes_on_with_the_one_that_ran_alone_and_was_started_again() -> None:
    made = Cluster(2, Rules(num_candidates=2, max_nodes=1, has_fence=True))
    made.run(3)
    (first,) = names(made)
    index = int(first[1:])
    made.kill(index)
    made.run(10)
    assert made.complete_rounds() == set()
    made.start(index)
    made.run(10)
    assert len(made.complete_rounds()) == 1


def test_a_coordinator_that_is_cut_off_from_dead_nodes_goes_on_alone() -> None:
    made = cluster(3, has_fence=True)
    (leader,) = made.leaders()
    for index in {*made.nodes} - {leader}:
        made.freeze(index)
    made.run(1.5 + 4 + 1)
    assert names(made) == [f"n{leader}"]


def test_a_claim_of_a_coordinator_that_died_meanwhile_stops_nobody() -> None:
    made = cluster(3, has_fence=True)
    leader = made.leaders()[0]
    asks = next(i for i in made.nodes if i != leader)
    made.want(asks)
    while len(made.folder.claims) < 2:
        made.tick(0.01)
        for index in list(made.nodes):
            made.deliver(index, True)
            made.deliver(index, False)
            if made.nodes[index].member.must_leave:
                made.want(index)
    assert len(made.commits) == 1
    made.kill(leader)
    made.run(5)
    assert len(names(made)) == 2


@pytest.mark.parametrize("has_given_way", [False, True])
def test_who_is_cut_off_while_the_job_ends_does_not_go_on_alone(has_given_way: bool) -> None:
    made = cluster(3, has_fence=True)
    (leader,) = made.leaders()
    alone = (leader + 1) % 3
    made.side[alone] = 1
    made.run(12 if has_given_way else 3)
    assert len(names(made)) == 2
    assert (made.nodes[alone].member.fenced_by is not None) == has_given_way
    made.close(leader)
    made.run(1)
    for index in {*made.nodes} - {alone}:
        made.kill(index)
    made.heal()
    made.run(10)
    closed = made.nodes[alone].member.closed
    assert closed is not None
    assert (closed.reason, closed.is_success) == ("all done", True)


def test_who_never_saw_a_claim_believes_no_end_in_the_folder() -> None:
    made = cluster(3)
    me = replace(made.nodes[0].member, stand=Waiting(), pulse=None)
    assert me.known
    assert not me.may_miss_the_end  # what it reads there may be of an earlier job
    unseen, said = member.looked(me, made.current(), False)
    assert (unseen.may_miss_the_end, said) == (False, [])
    seen, _ = member.looked(me, made.current(), True)
    assert seen.may_miss_the_end


def test_the_loss_of_the_only_endpoint_ends_the_job_within_the_lease() -> None:
    made = cluster(3, num_candidates=1)
    made.kill(0)
    made.run(2)
    for node in made.nodes.values():
        assert node.member.closed is not None
        assert "is lost; name more than one in --rdzv-endpoint" in node.member.closed.reason
        assert node.member.must_leave


def test_a_node_started_again_takes_its_old_place() -> None:
    made = cluster()
    order = names(made)
    index = int(order[1][1:])
    made.kill(index)
    made.start(index)
    made.run(4)
    assert names(made) == order


def test_a_job_whose_majority_was_started_again_ends_with_the_reason() -> None:
    made = cluster()
    for index in (1, 2):
        made.kill(index)
        made.start(index)
    made.run(8)
    for node in made.nodes.values():
        assert node.member.closed is not None
        assert "2 of the 3 agents of round 1 were started again" in node.member.closed.reason


def test_a_round_costs_each_node_a_handful_of_messages() -> None:
    made = cluster(64, num_candidates=1)
    (count,) = made.num_messages.values()
    assert count <= 5 * 64


def finish(made: Cluster, index: int) -> None:
    """The workers of a node end well."""
    made._act(index, member.finished(made.nodes[index].member))
    made.run(1)


def test_nobody_waits_for_a_node_whose_workers_have_finished() -> None:
    made = cluster(3)
    made.run(1)
    finish(made, 0)
    made.want(1)
    made.run(1)
    assert sorted(names(made)) == ["n1", "n2"]
    assert made.nodes[0].member.closed is None
    assert not made.nodes[0].member.over
    assert made.nodes[0].member.at is not None


def test_too_few_nodes_beside_those_that_have_finished_end_the_job_well() -> None:
    made = cluster(3, min_nodes=2)
    finish(made, 0)
    finish(made, 2)
    made.want(1)
    made.run(1)
    for node in made.nodes.values():
        assert node.member.closed is not None
        assert node.member.closed.is_success
        assert "the workers of node n0, n2 have finished" in node.member.closed.reason
        assert not node.member.must_leave


def test_a_beat_that_says_nothing_new_changes_nothing_but_its_number() -> None:
    made = cluster()
    state = made.nodes[made.leaders()[0]].state
    assert state is not None
    name, peer = next(iter(state.peers.items()))
    report = peer.report
    beat = Beat(
        serial=report.serial + 1, promised=report.promised, last=id_of(report.last), at=report.at,
        is_waiting=False,
    )  # fmt: skip
    event = Received(name=name, message=beat)
    assert not coordinator.is_news(state, event)
    after, wishes = coordinator.receive(state, event, made.now)
    same = replace(peer, report=replace(report, serial=beat.serial))
    assert (after, wishes) == (replace(state, peers={**state.peers, name: same}), [])
    assert decide.settle(after, made.now) == (after, [])
    for change in (
        {"serial": report.serial}, {"promised": report.promised + 99}, {"last": NO_ROUND},
        {"at": NO_ROUND}, {"is_waiting": True}, {"is_done": True},
    ):  # fmt: skip
        event = Received(name=name, message=replace(beat, **change))  # type: ignore[arg-type]
        assert coordinator.is_news(state, event), change
    event = Received(name="a stranger", message=beat)
    assert coordinator.is_news(state, event)
