"""Nodes that come are taken in where that pays; who comes and goes again waits, losses never do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.rendezvous.protocol import decide, growth
from bundlerun.launcher.rendezvous.protocol.growth import LONGEST_WAIT_S, payback_s, worth
from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.protocol.state import Rules, State, Stay
from tests.unit.launcher.rendezvous.protocol.cluster import Cluster

FLAPPING = 3
PAUSE_S = 0.6
PAYS_S = 2 * PAUSE_S * 3  # three nodes, and one more
IN_S, OUT_S = 3.0, 1.0
SOON_S = 2.0
"""After a loss that breaks a connection; a lease would be longer."""


def seats(*counts: int) -> list[Seat]:
    return [
        Seat(name=f"n{i}", incarnation="1", address="", num_workers=count)
        for i, count in enumerate(counts)
    ]


# --- arithmetic


@pytest.mark.parametrize(
    ("counts", "than", "bundle_sizes", "is_worth_it"),
    [
        ([1, 1, 1], [1, 1], (1,), True),
        ([1, 1, 1], [1, 1], (2,), False),
        ([1, 1, 1], [1, 1], (4, 3, 2), True),
        ([1, 1, 1], [1, 1], (4, 2), False),
    ],
)
def test_a_newcomer_is_worth_a_round_where_more_ranks_are_used(
    counts: list[int], than: list[int], bundle_sizes: tuple[int, ...], is_worth_it: bool
) -> None:
    now, was = worth(Rules(bundle_sizes=bundle_sizes), seats(*counts), seats(*than))
    assert (now > was) == is_worth_it


def test_what_is_foreseen_counts_where_both_are() -> None:
    rules = Rules(bundle_sizes=(1,), rates={(2, 1): 10.0, (1, 1): 12.0})
    assert worth(rules, seats(1, 2), seats(1, 1)) == (10.0, 12.0)
    assert worth(rules, seats(1, 1, 1), seats(1, 1)) == (3.0, 2.0)  # by ranks: one is not foreseen


@pytest.mark.parametrize(
    ("pause", "was", "now", "seconds"),
    [(0.6, 3.0, 4.0, 3.6), (0.6, 1.0, 2.0, 1.2), (0.0, 3.0, 4.0, 0.0), (0.6, 4.0, 4.0, 0.0)],
)
def test_two_pauses_are_made_up_for(pause: float, was: float, now: float, seconds: float) -> None:
    assert payback_s(pause, was, now) == pytest.approx(seconds)


@given(st.floats(0.01, 5), st.integers(1, 50), st.integers(1, 50))
def test_after_that_the_round_has_done_as_much(pause: float, was: int, more: int) -> None:
    now = was + more
    seconds = payback_s(pause, was, now)
    assert now * seconds == pytest.approx(was * (seconds + 2 * pause))


# --- the cluster


def cluster(**rules: object) -> Cluster:
    """Three nodes that stay, and one that comes and goes; all in a round."""
    values: dict[str, object] = {
        "num_candidates": 3, "max_nodes": 4, "bundle_sizes": (4, 3, 2, 1), "first_wait_s": 1.0,
    }  # fmt: skip
    made = Cluster(4, Rules(**(values | rules)))  # type: ignore[arg-type]
    made.pause_ms = round(PAUSE_S * 1000)
    made.run(3)
    assert len(made.current().seats) == 4
    return made


def flaps(made: Cluster, times: int) -> int:
    """The fourth node is lost and comes back; the times that the others stop for it."""
    taken_in = 0
    for _ in range(times):
        made.kill(FLAPPING)
        made.run(OUT_S)
        assert len(made.current().seats) == 3, "a loss waits for nothing"
        made.start(FLAPPING)
        made.run(IN_S)
        taken_in += len(made.current().seats) == 4
    return taken_in


def a_node_flaps(made: Cluster) -> None:
    """It stays for less than pays; at last it stays for good."""
    taken_in = flaps(made, 15)
    assert taken_in <= 4, "more often than pays"
    held = [d for _, _, event, d in made.notes if event == "coordinator: holds back"]
    assert held
    assert held[0]["nodes"] == ["n3"]
    made.run(2 * PAYS_S * 2**taken_in)
    assert len(made.current().seats) == 4, "it is not left out for good"


def another_is_lost_while_it_waits(made: Cluster) -> None:
    flaps(made, 6)
    assert len(made.current().seats) == 3
    made.kill(2)
    made.run(SOON_S)
    names = [seat.name for seat in made.current().seats]
    assert names == ["n0", "n1", "n3"], "who waits takes the place of a lost one at once"


def one_that_stays_long_comes_back(made: Cluster) -> None:
    """What it has done has paid for its coming: it comes back at once, each time."""
    for _ in range(6):
        made.run(2 * PAYS_S)
        assert flaps(made, 1) == 1


SCHEDULES = [a_node_flaps, another_is_lost_while_it_waits, one_that_stays_long_comes_back]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_flapping(schedule: Callable[[Cluster], None]) -> None:
    schedule(cluster())


def test_where_nobody_has_measured_a_pause_nothing_waits() -> None:
    made = cluster()
    made.pause_ms = 0
    assert flaps(made, 6) == 6


def test_another_newcomer_does_not_wait_and_all_who_are_there_come_with_it() -> None:
    made = cluster(max_nodes=5, bundle_sizes=(1,))
    flaps(made, 6)
    made.kill(FLAPPING)
    made.run(OUT_S)
    made.side[4] = 0
    made.start(FLAPPING)
    made.start(4)
    made.run(SOON_S)
    # All stop for the other one: it costs nothing more to take in who waits.
    assert [seat.name for seat in made.current().seats] == ["n0", "n1", "n2", "n3", "n4"]


def test_a_node_by_which_the_run_is_foreseen_to_be_slower_stays_out() -> None:
    made = cluster(rates={(1, 1, 1): 10.0, (1, 1, 1, 1): 9.0})
    made.kill(FLAPPING)
    made.run(3)
    made.start(FLAPPING)
    made.run(6)
    assert len(made.current().seats) == 3


def test_no_wait_is_longer_than_ten_minutes() -> None:
    made = cluster()
    made.kill(FLAPPING)
    made.run(3)
    made.start(FLAPPING)
    (leader,) = made.leaders()
    state = made.nodes[leader].state
    assert state is not None
    round_ = replace(made.current(), seats=made.current().seats[:3])
    come = Seat(name="n9", incarnation="x", address="", num_workers=1)
    peer = replace(next(iter(state.peers.values())), came_at=0.0)
    peer = replace(peer, report=replace(peer.report, seat=come, pause_ms=600))
    state = replace(state, peers={**state.peers, "n9": peer}, stays={"n9": Stay(num_short=40)})
    assert growth.held_back(state, round_, [*round_.seats, come], 1.0) == {
        "n9": LONGEST_WAIT_S - 1.0
    }


# --- would it notice? ----------------------------------------------------------------------------


def takes_everybody_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide, "held_back", lambda *_: {})


def counts_no_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decide, "counted", lambda state, *_: state.stays)


def holds_back_for_ever(patch: pytest.MonkeyPatch) -> None:
    honest = growth.held_back

    def held(state: State, round_: Round, choice: Sequence[Seat], _: float) -> Mapping[str, float]:
        return honest(state, round_, choice, -1e9)

    patch.setattr(decide, "held_back", held)


def waits_after_a_loss_too(patch: pytest.MonkeyPatch) -> None:
    honest = decide.missing

    def missing(state: State, choice: tuple[Seat, ...], now: float) -> str:
        return "a node comes and goes" if state.held else honest(state, choice, now)

    patch.setattr(decide, "missing", missing)


def counts_stays_that_have_paid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(growth, "payback_s", lambda pause, was, now: 1e6 * pause if now > was else 0.0)


SEEN = [
    (takes_everybody_in, a_node_flaps),
    (counts_no_stay, a_node_flaps),
    (holds_back_for_ever, a_node_flaps),
    (waits_after_a_loss_too, another_is_lost_while_it_waits),
    (counts_stays_that_have_paid, one_that_stays_long_comes_back),
]


@pytest.mark.parametrize(("mutation", "schedule"), SEEN)
def test_the_model_notices(
    mutation: Callable[[pytest.MonkeyPatch], None],
    schedule: Callable[[Cluster], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = cluster()
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        schedule(made)
