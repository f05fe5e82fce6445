import socket
from collections.abc import Iterator

import pytest

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.meeting.addresses import LOOPBACK
from bundlerun.launcher.meeting.network import (
    Meeting,
    as_typed,
    check_port,
    resolve_meeting,
    wait_for_meeting,
)
from bundlerun.launcher.options.endpoints import Endpoint, text_of_endpoints


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def meeting(port: int, *, is_here: bool = True) -> Meeting:
    return Meeting(
        endpoints=(Endpoint(host=LOOPBACK, port=port),), is_here=is_here, local_addr=LOOPBACK
    )


def test_a_node_alone_meets_itself_on_a_free_port() -> None:
    found = resolve_meeting(LaunchConfig())
    assert (found.first, found.is_here) == (Endpoint(host=LOOPBACK, port=0), True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.1.1"])
def test_loopback_with_several_nodes_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="which other nodes cannot reach"):
        resolve_meeting(LaunchConfig(nnodes="2", rdzv_endpoint=f"{host}:2000"))


def test_loopback_is_taken_from_who_says_that_all_nodes_are_here() -> None:
    launch = LaunchConfig(nnodes="2", rdzv_endpoint="localhost:2000", local_addr=LOOPBACK)
    assert resolve_meeting(launch) == meeting(2000)


def test_a_name_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'no\.such\.invalid' cannot be resolved"):
        resolve_meeting(LaunchConfig(nnodes="2", rdzv_endpoint="no.such.invalid:2000"))


def test_under_the_static_backend_node_rank_0_keeps_the_endpoint() -> None:
    first, second = (
        resolve_meeting(
            LaunchConfig(
                nnodes="2",
                rdzv_backend="static",
                rdzv_endpoint="127.0.0.1:2000",
                local_addr=LOOPBACK,
                node_rank=rank,
            )
        )
        for rank in (0, 1)
    )
    assert (first.is_here, second.is_here) == (True, False)


@pytest.mark.parametrize(("text", "is_here"), [("is_host=0", False), ("is_host=true", True)])
def test_who_keeps_the_endpoint_can_be_said(text: str, is_here: bool) -> None:
    launch = LaunchConfig(
        nnodes="2", rdzv_endpoint="127.0.0.1:2000", local_addr=LOOPBACK, rdzv_conf=text
    )
    assert resolve_meeting(launch).is_here is is_here


def test_a_plan_asks_no_network() -> None:
    launch = LaunchConfig(nnodes="2", rdzv_endpoint="no.such.invalid:2000")
    assert str(as_typed(launch).first) == "no.such.invalid:2000"


def test_a_port_in_use_is_refused_with_its_number(busy_port: int) -> None:
    with pytest.raises(NodeError, match=f":{busy_port}: address already in use; give another"):
        check_port(meeting(busy_port), is_store=lambda *_: False)


def test_a_port_that_another_agent_of_the_job_keeps_is_fine(busy_port: int) -> None:
    asked: list[tuple[str, int]] = []

    def is_store(address: str, port: int) -> bool:
        asked.append((address, port))
        return True

    assert not check_port(meeting(busy_port), is_store=is_store)
    assert asked == [(LOOPBACK, busy_port)]


def test_a_port_of_another_node_is_not_tried_here(busy_port: int) -> None:
    assert not check_port(meeting(busy_port, is_here=False), is_store=lambda *_: False)


def test_a_free_port_is_for_this_node_to_keep(free_port: int) -> None:
    assert check_port(meeting(free_port), is_store=lambda *_: False)
    assert check_port(meeting(0), is_store=lambda *_: False)


def test_an_endpoint_that_answers_is_not_waited_for(busy_port: int) -> None:
    said: list[str] = []
    there = meeting(busy_port, is_here=False)
    wait_for_meeting(there, is_store=lambda *_: True, say=said.append)
    assert said == []


def test_an_endpoint_that_is_something_else_is_refused(busy_port: int) -> None:
    there = meeting(busy_port, is_here=False)
    with pytest.raises(NodeError, match=f":{busy_port} is no rendezvous store"):
        wait_for_meeting(there, is_store=lambda *_: False, say=print)


def test_an_endpoint_that_never_answers_is_given_up(free_port: int) -> None:
    said: list[str] = []
    times = iter(range(100))
    with pytest.raises(NodeError, match=r"cannot reach .* connection refused"):
        wait_for_meeting(
            meeting(free_port, is_here=False),
            is_store=lambda *_: False,
            say=said.append,
            wait_s=3,
            clock=lambda: next(times),
            sleep=lambda _: None,
        )
    assert said == [f"waiting up to 3 s for the node at 127.0.0.1:{free_port}"]


@pytest.mark.parametrize(("own", "is_here"), [("127.0.0.1", True), ("127.0.0.2", False)])
def test_several_nodes_of_one_machine_have_an_endpoint_each(own: str, is_here: bool) -> None:
    endpoints = "127.0.0.1:2000,127.0.0.2:2000"
    meeting = resolve_meeting(LaunchConfig(nnodes="2", rdzv_endpoint=endpoints, local_addr=own))
    found = text_of_endpoints(meeting.endpoints)
    assert (found, meeting.is_here, meeting.local_addr) == (endpoints, is_here, own)
