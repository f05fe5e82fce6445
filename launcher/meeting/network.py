"""Where the nodes meet: the addresses of the endpoints, who keeps the first, whether it answers."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.meeting.addresses import LOOPBACK, is_loopback, own_place, resolve
from bundlerun.launcher.options.endpoints import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the nodes meet, worked out for this node.

    endpoints: the nodes meet at the first; the others take over, in order. Port 0 is a free one.
    is_here: whether this node is to keep the first.
    local_addr: where others reach this node; empty where the user says nothing and the network
        was not asked.
    """

    endpoints: tuple[Endpoint, ...]
    is_here: bool
    local_addr: str

    @property
    def first(self) -> Endpoint:
        """The endpoint at which the nodes meet as long as its node lives."""
        return self.endpoints[0]


def as_typed(launch: LaunchConfig) -> Meeting:
    """The endpoints without asking the network, for a plan."""
    if launch.is_alone:
        free = Endpoint(host=LOOPBACK, port=0)
        return Meeting(endpoints=(free,), is_here=True, local_addr=LOOPBACK)
    return Meeting(endpoints=launch.endpoints, is_here=False, local_addr=launch.local_addr)


def resolve_meeting(launch: LaunchConfig) -> Meeting:
    """The endpoints with addresses instead of names, which nodes may resolve differently.

    Raises:
        ConfigError: a name is unknown, or names this machine to itself only.
        NodeError: there is no route to the endpoints.
    """
    if launch.is_alone:
        return as_typed(launch)
    endpoints = tuple(
        replace(each, host=_reachable(each.host, launch)) for each in launch.endpoints
    )
    place = own_place(endpoints, launch.local_addr)
    is_said = launch.backend.keeps_first(launch.node_rank, launch.rdzv_settings)
    is_here = 0 in place.kept if is_said is None else is_said
    # As typed: a name may stand for another address here than on the nodes that are told it.
    return Meeting(
        endpoints=endpoints, is_here=is_here, local_addr=launch.local_addr or place.address
    )


def _reachable(host: str, launch: LaunchConfig) -> str:
    """The address of an endpoint, which the other nodes have to reach."""
    address = resolve(host)
    if launch.max_nodes > 1 and is_loopback(address) and not is_loopback(launch.local_addr):
        raise ConfigError(
            f"--rdzv-endpoint {host!r} is {address}, which other nodes cannot reach; give an "
            f"address of this node that they can, or --local-addr {address} if all nodes are on "
            "this machine"
        )
    return address


def check_port(meeting: Meeting, *, is_store: Callable[[str, int], bool]) -> bool:
    """Finds out whether this node is to keep the endpoint, and makes sure that it can.

    Args:
        is_store: whether a rendezvous store answers there: another agent of this machine was first.

    Returns:
        False where the endpoint is another node's, or another agent of this one keeps it already.

    Raises:
        NodeError: the port is taken by something else, or not for us.
    """
    first = meeting.first
    if not first.port or not meeting.is_here:
        return meeting.is_here
    family = socket.AF_INET6 if ":" in first.host else socket.AF_INET
    with socket.socket(family) as probe:
        # Connections of an earlier start that linger in TIME_WAIT do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((first.host, first.port))
            return True
        except OSError as exc:
            # Taken by a store: another agent on this machine keeps the endpoint already.
            if exc.errno == errno.EADDRINUSE and is_store(first.host, first.port):
                return False
            reason = (exc.strerror or str(exc)).lower()
    raise NodeError(
        f"cannot listen at --rdzv-endpoint {first}: {reason}; give another port, the same on "
        "every node"
    )


def wait_for_meeting(
    meeting: Meeting,
    *,
    is_store: Callable[[str, int], bool],
    say: Callable[[str], None],
    wait_s: float = 60.0,
    poll_s: float = 0.2,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until the node that keeps the endpoint answers, where that is another.

    Args:
        is_store: whether it is a rendezvous store that answers.
        say: shows the user, once, that this node waits.
        wait_s: how long that node may take to come up, seconds.
        poll_s: time between two attempts, seconds.

    Raises:
        NodeError: it does not answer, or there is no way to it.
    """
    if meeting.is_here:
        return
    first = meeting.first
    deadline = clock() + wait_s
    has_said = False
    while (reason := _refusal(first)) is not None:
        # Without a route waiting does not help; a refusal may end when that node has come up.
        if reason.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) or clock() >= deadline:
            answer = (reason.strerror or "no answer").lower()
            raise NodeError(
                f"cannot reach --rdzv-endpoint {first}: {answer}; start the node that has this "
                "address, and check the firewall"
            )
        if not has_said:
            say(f"waiting up to {wait_s:.0f} s for the node at {first}")
            has_said = True
        sleep(poll_s)
    if not is_store(first.host, first.port):
        raise NodeError(
            f"what answers at --rdzv-endpoint {first} is no rendezvous store; give the port that "
            "the node there listens at"
        )


def _refusal(endpoint: Endpoint) -> OSError | None:
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=5.0):
            return None
    except OSError as exc:
        return exc
