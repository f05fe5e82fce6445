"""One grammar of endpoints, for options, the rendezvous and Slurm."""

from __future__ import annotations

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.endpoints import Endpoint, parse_endpoints, text_of_endpoints


def test_endpoints_are_a_list() -> None:
    assert list(map(str, parse_endpoints("a:1, b,[::1]:5"))) == ["a:1", "b:29400", "[::1]:5"]
    assert parse_endpoints("127.0.0.1:0", may_be_free=True)[0].port == 0


@pytest.mark.parametrize("text", ["", "a:b", "a:70000", "a,,b", "a:1,a:1", "a:0,b:1"])
def test_an_endpoint_written_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--rdzv-endpoint"):
        parse_endpoints(text, may_be_free=True)


def test_port_0_is_for_a_node_that_is_alone() -> None:
    with pytest.raises(ConfigError, match="'a:0' is not HOST:PORT"):
        parse_endpoints("a:0")


def test_an_ipv6_endpoint_is_written_in_brackets() -> None:
    assert str(Endpoint(host="::1", port=1)) == "[::1]:1"


def test_what_is_written_is_read_again() -> None:
    found = parse_endpoints("a,10.0.0.1:7,[::1]:5")
    assert parse_endpoints(text_of_endpoints(found)) == found
