"""Pure but for names: where the nodes of --peers are, and which of them this one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.meeting.addresses import (
    OwnAddresses,
    is_loopback,
    own_endpoints,
    resolve,
    route_to,
)
from bundlerun.launcher.options.endpoints import Endpoint, parse_endpoints

OPTION = "--peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The nodes, in the order of the list.

    endpoints: with addresses; None for a name that is unknown here.
    kept: indices of those that this node may be: several where nodes share this machine.
    note: what is odd about this node's own name; else nothing.
    """

    endpoints: tuple[Endpoint | None, ...]
    kept: tuple[int, ...]
    note: str = ""


def parse_peers(text: str) -> tuple[Endpoint, ...]:
    """Reads `a,b:29500,[fd00::1]`, as --rdzv-endpoint is written.

    Raises:
        ConfigError: it is written otherwise, names one twice, or fewer than two.
    """
    found = parse_endpoints(text, option=OPTION)
    if len(found) < 2:
        raise ConfigError(f"{OPTION} {text!r} names one node; name all, in one order on each")
    return found


def places_of(peers: Sequence[Endpoint], local_addr: str) -> Places:
    """Looks the names up, and finds this node among them.

    Args:
        local_addr: address of this node in the list; empty: one of its own addresses.

    Raises:
        ConfigError: this node is not in the list.
    """
    endpoints: list[Endpoint | None] = []
    for peer in peers:
        try:
            endpoints.append(replace(peer, host=resolve(peer.host, OPTION)))
        except ConfigError:
            endpoints.append(None)
    address = resolve(local_addr, "--local-addr") if local_addr else ""
    own = OwnAddresses.read()
    known = [index for index, each in enumerate(endpoints) if each is not None]
    hosts = [each.host for each in endpoints if each is not None]
    kept = [known[index] for index in own_endpoints(hosts, own, address)]
    if not kept:
        mine = ", ".join(sorted(a for a in own.interfaces if _is_shown(a))) or "none"
        raise ConfigError(
            f"{OPTION} names no address of this node, which has {mine}; name all nodes, this one "
            "too, or say which is this one with --local-addr"
        )
    return _with_own_name(peers, endpoints, kept)


def _with_own_name(
    peers: Sequence[Endpoint], endpoints: list[Endpoint | None], kept: list[int]
) -> Places:
    """Puts the address that peers see where this node's own name stands for the loopback."""
    first = endpoints[kept[0]]
    assert first is not None
    others = [e for e in endpoints if e is not None and not is_loopback(e.host)]
    if not is_loopback(first.host) or not others:
        return Places(endpoints=tuple(endpoints), kept=tuple(kept))
    try:
        address = route_to(others[0].host, others[0].port)
    except NodeError:
        return Places(endpoints=tuple(endpoints), kept=tuple(kept))
    endpoints[kept[0]] = replace(first, host=address)
    note = f"{peers[kept[0]].host} is {first.host} here, where peers meet {address}"
    return Places(endpoints=tuple(endpoints), kept=tuple(kept[:1]), note=note)


def _is_shown(address: str) -> bool:
    return address[:1].isdecimal() and address.count(".") == 3 and not is_loopback(address)
