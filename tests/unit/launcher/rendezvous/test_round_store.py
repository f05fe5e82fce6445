"""The store of a round is reached within a time, whatever has become of who keeps it."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from bundlerun.launcher.rendezvous.protocol.messages import Round, Seat
from bundlerun.launcher.rendezvous.round_store import open_store, reach_store


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
