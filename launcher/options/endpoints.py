"""Pure: the endpoints at which nodes meet, as --rdzv-endpoint names them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError

DEFAULT_PORT = 29400
"""Port of an endpoint that names none, torch's own choice."""

_ENDPOINT = r"(?:\[(?P<bracketed>[^\[\]\s,]+)\]|(?P<host>[^\[\]:\s,]+))(?::(?P<port>\d+))?"
"""A name, an IPv4 address, or an IPv6 address in brackets; perhaps a port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one node listens for the others.

    host: a name as typed, or an address once it is resolved.
    port: 0 for a free one, of a node that is alone.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """A name or an address as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def parse_endpoints(
    text: str, *, may_be_free: bool = False, option: str = "--rdzv-endpoint"
) -> tuple[Endpoint, ...]:
    """Reads `a:29400,b,[::1]:5`; the first is where the nodes meet, the others take over in order.

    Args:
        may_be_free: whether a single endpoint may have port 0.
        option: what gives the text.

    Raises:
        ConfigError: it is written otherwise, or names one endpoint twice.
    """
    parts = text.split(",")
    least = 0 if may_be_free and len(parts) == 1 else 1
    found = tuple(_endpoint(part.strip(), least, option) for part in parts)
    # Compared as read: `a` and `a:29400` are one endpoint.
    if len(set(found)) < len(found):
        raise ConfigError(f"{option} {text!r} names an endpoint twice")
    return found


def _endpoint(text: str, least_port: int, option: str) -> Endpoint:
    match = re.fullmatch(_ENDPOINT, text)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if not match or not least_port <= port < 65536:
        raise ConfigError(f"{option} {text!r} is not HOST:PORT")
    return Endpoint(host=match["bracketed"] or match["host"], port=port)


def text_of_endpoints(endpoints: Iterable[Endpoint]) -> str:
    """The endpoints in the form that --rdzv-endpoint and torch take."""
    return ",".join(map(str, endpoints))
