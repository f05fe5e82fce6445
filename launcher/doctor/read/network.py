"""Reads how one node stands in the network; sends nothing."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import psutil

from bundlerun.launcher.doctor.network import INTERFACE_VARIABLES, Card, NetworkFacts
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.addresses import resolve


def read_network(environ: Mapping[str, str], address: str = "") -> NetworkFacts:
    """How it stands there now.

    Args:
        environ: of the ranks.
        address: at which peers reach it, where that is known.
    """
    stats = psutil.net_if_stats()
    families = (socket.AF_INET, socket.AF_INET6)
    name = socket.gethostname()
    try:
        named = resolve(name)
    except ConfigError:
        named = ""
    return NetworkFacts(
        name=name,
        named=named,
        cards=tuple(
            Card(
                name=card,
                addresses=tuple(a.address.split("%")[0] for a in found if a.family in families),
                mbit_per_s=stats[card].speed,
                mtu=stats[card].mtu,
            )
            for card, found in psutil.net_if_addrs().items()
            if card in stats and stats[card].isup and any(a.family in families for a in found)
        ),
        address=address,
        chosen=tuple((each, environ[each]) for each in INTERFACE_VARIABLES if environ.get(each)),
    )
