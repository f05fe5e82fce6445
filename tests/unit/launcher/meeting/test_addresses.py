"""Which addresses are this machine's, and which endpoints are for it to keep."""

from __future__ import annotations

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.addresses import (
    LOOPBACK,
    OwnAddresses,
    interface_of,
    is_loopback,
    own_endpoints,
    own_place,
    route_to,
    source_address,
)
from bundlerun.launcher.options.endpoints import parse_endpoints


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.1.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("", False)],
)
def test_loopback_is_known(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    ("local_addr", "kept"),
    [("", [0, 1, 3]), ("10.0.0.2", [1, 3]), ("10.0.0.9", [0, 1, 3]), ("127.0.0.1", [2])],
)
def test_a_node_may_keep_each_endpoint_of_its_own_address(local_addr: str, kept: list[int]) -> None:
    addresses = ["10.0.0.1", "10.0.0.2", "127.0.0.1", "10.0.0.2", "10.0.0.7"]
    found = own_endpoints(addresses, {"10.0.0.1", "10.0.0.2"}, local_addr)
    assert found == kept


def test_an_interface_is_found_by_its_address() -> None:
    interfaces = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "eth1": ["10.0.1.1", "fe80::1"]}
    addresses = ["10.0.1.1", "fe80::1", "127.0.0.1", "10.0.0.9"]
    assert [interface_of(each, interfaces) for each in addresses] == ["eth1", "eth1", "lo", ""]


def test_all_loopback_addresses_are_this_machines() -> None:
    own = OwnAddresses(frozenset({"10.0.0.1"}))
    found = [address in own for address in ("10.0.0.1", "127.0.1.1", "::1", "10.0.0.2")]
    assert found == [True, True, True, False]


@pytest.mark.parametrize(
    ("local_addr", "kept"),
    [("", [0, 1]), ("127.0.0.2", [1]), ("127.0.0.3", []), ("10.0.0.1", [0, 1])],
)
def test_loopback_endpoints_are_shared_out_by_loopback_addresses(
    local_addr: str, kept: list[int]
) -> None:
    own = OwnAddresses(frozenset({"10.0.0.1"}))
    assert own_endpoints(["127.0.0.1", "127.0.0.2"], own, local_addr) == kept


def test_a_local_address_may_be_a_name() -> None:
    place = own_place(parse_endpoints("127.0.0.1:2000"), "localhost")
    assert (place.address, place.kept) == (LOOPBACK, (0,))


def test_a_local_address_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--local-addr 'no\.such\.invalid' cannot be resolved"):
        own_place(parse_endpoints("127.0.0.1:2000"), "no.such.invalid")


def test_the_way_to_loopback_begins_there() -> None:
    assert route_to(LOOPBACK, 9) == source_address("localhost", 9) == LOOPBACK
