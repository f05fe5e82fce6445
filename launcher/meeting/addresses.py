"""Addresses: of a name, of this machine, and the one at which other nodes reach it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.options.endpoints import Endpoint

LOOPBACK = "127.0.0.1"
_INTERFACE = "NCCL_SOCKET_IFNAME"


def resolve(host: str, option: str = "--rdzv-endpoint") -> str:
    """The address of `host`, IPv4 where it has one.

    Args:
        option: what gave the name.

    Raises:
        ConfigError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(
            f"{option} {host!r} cannot be resolved: {reason}; give its address"
        ) from exc
    return str(min(found, key=lambda info: info[0] != socket.AF_INET)[4][0])


def is_loopback(address: str) -> bool:
    """Whether an address, or the name localhost, reaches only this machine."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


@dataclass(frozen=True, slots=True)
class OwnAddresses(Container[str]):
    """The addresses of this machine: those of its interfaces, and all that are loopback."""

    interfaces: frozenset[str]

    @classmethod
    def read(cls) -> OwnAddresses:
        """As the system has them now."""
        interfaces = psutil.net_if_addrs().values()
        return cls(frozenset(found.address.split("%")[0] for each in interfaces for found in each))

    def __contains__(self, address: object) -> bool:
        return address in self.interfaces or is_loopback(str(address))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this node stands among the endpoints of its job.

    address: at which the other nodes reach it.
    kept: indices of the endpoints that it may keep, in order.
    """

    address: str
    kept: tuple[int, ...]


def own_place(endpoints: Sequence[Endpoint], local_addr: str) -> Place:
    """Where this node stands among endpoints that are resolved.

    Args:
        local_addr: the address that the user gives; empty takes that of the route to the first
            endpoint on another machine.

    Raises:
        ConfigError: `local_addr` is a name that is unknown.
        NodeError: there is no route to that endpoint.
    """
    own = OwnAddresses.read()
    address = resolve(local_addr, "--local-addr") if local_addr else ""
    kept = own_endpoints([each.host for each in endpoints], own, address)
    # The route to an own address would be the loopback, at which no other node reaches this one.
    towards = next((each for each in endpoints if each.host not in own), endpoints[0])
    return Place(address=address or route_to(towards.host, towards.port), kept=tuple(kept))


def interface_of(address: str, interfaces: Mapping[str, Iterable[str]] | None = None) -> str:
    """The name of the interface that has an own address; empty where none has.

    Args:
        address: of this machine.
        interfaces: addresses by name; None: as the system has them now.
    """
    if interfaces is None:
        found = psutil.net_if_addrs().items()
        interfaces = {name: [each.address.split("%")[0] for each in all_] for name, all_ in found}
    return next((name for name, known in interfaces.items() if address in known), "")


def nccl_interface(local_addr: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What has NCCL take the network of --local-addr, as gloo does; the user's variable counts.

    Raises:
        ConfigError: `local_addr` is a name that is unknown.
    """
    if not local_addr or _INTERFACE in environ:
        return {}
    name = interface_of(resolve(local_addr, "--local-addr"))
    return {_INTERFACE: f"={name}"} if name else {}  # else NCCL takes it for a beginning of names


def own_endpoints(addresses: Sequence[str], own: Container[str], local_addr: str) -> list[int]:
    """Which endpoints this node may keep, in order; it keeps the first that no other agent has.

    Args:
        addresses: of the endpoints.
        own: this machine's addresses.
        local_addr: the address that the others reach this node at; several nodes on one machine
            are told apart by it.
    """
    if local_addr in addresses:
        return [index for index, address in enumerate(addresses) if address == local_addr]
    # With a loopback --local-addr, nodes share this machine: a loopback endpoint may be another's.
    has_others_here = is_loopback(local_addr)
    return [
        index
        for index, address in enumerate(addresses)
        if address in own and not (has_others_here and is_loopback(address))
    ]


def route_to(address: str, port: int) -> str:
    """The address of this node from which packets to `address` leave; sends nothing.

    Raises:
        NodeError: there is no route.
    """
    try:
        return source_address(address, port)
    except OSError as exc:
        raise NodeError(
            f"no route to --rdzv-endpoint {address}: {exc.strerror}; check the network, or "
            "give --local-addr"
        ) from exc


def source_address(host: str, port: int) -> str:
    """The address of this node from which the kernel would send to `host`; no packet leaves.

    Raises:
        OSError: there is no route; socket.gaierror: the name is unknown.
    """
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        # Connecting a datagram socket only chooses the route.
        probe.connect(target)
        return str(probe.getsockname()[0])
