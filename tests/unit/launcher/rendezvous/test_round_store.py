"""The store of a round is reached within a time, whatever has become of who keeps it."""

from __future__ import annotations

import json
import socket
from datetime import timedelta

import pytest

from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.round_store import RoundStore, open_store, reach_store


def round_at(port: int) -> Round:
    seat = Seat(name="a", incarnation="1", address="127.0.0.1", num_workers=1)
    return Round(term=1, number=1, seats=(seat,), store_port=port)


def test_a_store_that_answers_is_reached() -> None:
    kept = open_store("127.0.0.1", timedelta(seconds=10))
    kept.set("key", "value")
    reached = reach_store(round_at(kept.port), timedelta(seconds=10))
    assert reached.get("key") == b"value"


def test_a_store_whose_process_has_stopped_is_given_up() -> None:
    # As that of a frozen process: the kernel takes the connection, and nobody reads.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port}, does not answer within"):
            reach_store(round_at(port), timedelta(seconds=0.5))


def test_a_store_that_is_gone_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(RuntimeError):
        reach_store(round_at(port), timedelta(seconds=0.5))


def test_torchs_agent_counts_those_who_finish_in_the_round_that_its_workers_went_on_in() -> None:
    seats = [
        Seat(name=name, incarnation=name, address="127.0.0.1", num_workers=2) for name in "abc"
    ]
    told = Round(term=1, number=1, seats=tuple(seats[:2]))
    later = Round(term=1, number=2, seats=tuple(seats), before=told.id)
    first, second = (open_store("127.0.0.1", timedelta(seconds=10)) for _ in range(2))
    never = lambda: False  # noqa: E731
    shared = RoundStore(
        first, told, 0, learn=lambda _: None, is_over=never, finish=lambda: None, is_ended=never
    )
    shared.move(second, later, 0)
    key = "torchelastic/agent/terminal_state/num_members"
    # It compares with the two nodes of the round that it knows: the last of three is the second.
    assert [shared.add(key, 1) for _ in seats] == [1, 1, 2]
    assert not first.check([f"agents/{key}"])
    assert json.loads(shared.get("torchelastic/assigned_ranks/2")) == [4, 6, 4, 6]
