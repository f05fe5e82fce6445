"""Where the nodes meet: the endpoint's address, who keeps it, and how others reach this node."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """The endpoint, worked out for this node.

    `local_addr` is empty where the endpoint was not resolved; `port` 0 is a free one; `others` are
    the endpoints that take over, ADDRESS:PORT in order.
    """

    address: str
    port: int
    is_here: bool
    local_addr: str
    others: tuple[str, ...] = ()

    @property
    def endpoints(self) -> str:
        """All endpoints, as --rdzv-endpoint takes them."""
        return ",".join([str(self), *self.others])

    def __str__(self) -> str:
        return endpoint_text(self.address, self.port)


def endpoint_text(address: str, port: int) -> str:
    """ADDRESS:PORT, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def as_typed(launch: LaunchConfig) -> Meeting:
    """The endpoint without asking the network, for a plan."""
    if launch.is_alone:
        return Meeting(address=LOOPBACK, port=0, is_here=True, local_addr=LOOPBACK)
    host, port = launch.endpoint
    others = tuple(endpoint_text(*endpoint) for endpoint in launch.endpoints[1:])
    return Meeting(
        address=host, port=port, is_here=False, local_addr=launch.local_addr, others=others
    )


def resolve_meeting(launch: LaunchConfig) -> Meeting:
    """The endpoint with its address instead of a name, which nodes may resolve differently.

    Raises:
        ConfigError: the name is unknown, or names this machine to itself only.
    """
    if launch.is_alone:
        return as_typed(launch)
    endpoints = [(_reachable(host, launch), port) for host, port in launch.endpoints]
    address, port = endpoints[0]
    own = own_addresses()
    is_here = is_loopback(address) or address in own
    if launch.rdzv_backend == "static":
        is_here = launch.node_rank == 0
    elif "is_host" in launch.rdzv_settings:
        is_here = launch.rdzv_settings["is_host"].lower() in ("1", "true", "t", "yes", "y")
    elif is_loopback(address) and is_loopback(launch.local_addr):
        is_here = address == resolve(launch.local_addr)  # of several nodes on this machine
    towards = next((each for each in endpoints if each[0] not in own), endpoints[0])
    return Meeting(
        address=address,
        port=port,
        is_here=is_here,
        local_addr=launch.local_addr or route_to(*towards),
        others=tuple(endpoint_text(*endpoint) for endpoint in endpoints[1:]),
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


def resolve(host: str) -> str:
    """The address of `host`, IPv4 where it has one.

    Raises:
        ConfigError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(
            f"--rdzv-endpoint {host!r} cannot be resolved: {reason}; give its address"
        ) from exc
    return str(min(found, key=lambda info: info[0] != socket.AF_INET)[4][0])


def is_loopback(address: str) -> bool:
    """True for an address, or the name localhost, that reaches only this machine."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def own_addresses() -> set[str]:
    """The addresses of this machine's interfaces."""
    interfaces = psutil.net_if_addrs().values()
    return {address.address.split("%")[0] for each in interfaces for address in each}


def route_to(address: str, port: int) -> str:
    """The address of this node that packets to `address` leave from; sends nothing.

    Raises:
        NodeError: there is no route.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError as exc:
            raise NodeError(
                f"no route to --rdzv-endpoint {address}: {exc.strerror}; check the network, or "
                "give --local-addr"
            ) from exc
        return str(probe.getsockname()[0])


def check_port(meeting: Meeting, *, is_store: Callable[[str, int], bool]) -> bool:
    """Finds out whether this node is to keep the endpoint, and makes sure that it can.

    Args:
        is_store: whether a rendezvous store answers there: another agent of this machine was first.

    Returns:
        False where the endpoint is another node's, or another agent of this one keeps it already.

    Raises:
        NodeError: the port is taken by something else, or not for us.
    """
    if not meeting.port or not meeting.is_here:
        return meeting.is_here
    family = socket.AF_INET6 if ":" in meeting.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((meeting.address, meeting.port))
            return True
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and is_store(meeting.address, meeting.port):
                return False
            reason = (exc.strerror or str(exc)).lower()
    raise NodeError(
        f"cannot listen at --rdzv-endpoint {meeting}: {reason}; give another port, the same on "
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
        say: is told once that this node waits.
        wait_s: how long that node may take to come up, seconds.
        poll_s: time between two attempts, seconds.

    Raises:
        NodeError: it does not answer, or there is no way to it.
    """
    if meeting.is_here:
        return
    deadline = clock() + wait_s
    has_said = False
    while (reason := _refusal(meeting)) is not None:
        if reason.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH) or clock() >= deadline:
            answer = (reason.strerror or "no answer").lower()
            raise NodeError(
                f"cannot reach --rdzv-endpoint {meeting}: {answer}; start the node that has this "
                "address, and check the firewall"
            )
        if not has_said:
            say(f"waiting up to {wait_s:.0f} s for the node at {meeting}")
            has_said = True
        sleep(poll_s)
    if not is_store(meeting.address, meeting.port):
        raise NodeError(
            f"what answers at --rdzv-endpoint {meeting} is no rendezvous store; give the port that "
            "the node there listens at"
        )


def _refusal(meeting: Meeting) -> OSError | None:
    try:
        with socket.create_connection((meeting.address, meeting.port), timeout=5.0):
            return None
    except OSError as exc:
        return exc
