"""Pure: the name, the addresses and the cards of one node, as its peers will meet them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning
from bundlerun.launcher.meeting.addresses import is_loopback

SLOW_CARD = 1000
"""Mbit/s. A card that negotiates less than that has a bad cable, or an old switch."""
INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A network interface that is up. mbit_per_s: as negotiated; 0 where it does not say."""

    name: str
    addresses: tuple[str, ...]
    mbit_per_s: int = 0
    mtu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """How this node stands in the network.

    name: the machine's. named: the address that its name stands for here; empty where it has none.
    address: at which peers reach this node; empty where none was asked for.
    chosen: what variables name interfaces for NCCL and gloo, by variable.
    """

    name: str
    named: str
    cards: tuple[Card, ...]
    address: str = ""
    chosen: tuple[tuple[str, str], ...] = ()


def check_network(facts: NetworkFacts) -> list[Finding]:
    """All of it, in order."""
    return [check_name(facts), *check_card(facts), *check_chosen(facts)]


def check_name(facts: NetworkFacts) -> Finding:
    """Name and address of this node."""
    subject = "name"
    if facts.address:
        card = next((c.name for c in facts.cards if facts.address in c.addresses), "")
        where = f" ({card})" if card else ""
        return ok(subject, f"{facts.name}; peers meet it at {facts.address}{where}")
    if not facts.named:
        text = f"{facts.name} stands for no address here"
        return warning(subject, text, "add it to /etc/hosts, or give --local-addr on several nodes")
    others = [each for card in facts.cards for each in card.addresses if not is_loopback(each)]
    if is_loopback(facts.named) and others:
        # Usual on Debian; only a run of several nodes that names it by this name minds.
        text = f"{facts.name} is {facts.named} here; for other nodes this is {others[0]}"
        return ok(subject, text)
    return ok(subject, f"{facts.name}, {facts.named}")


def check_card(facts: NetworkFacts) -> Iterator[Finding]:
    """The card that the traffic between nodes takes; without peers, all that are there."""
    shown = [c for c in facts.cards if facts.address in c.addresses] if facts.address else []
    for card in shown or [c for c in facts.cards if not all(map(is_loopback, c.addresses))]:
        speed = f"{card.mbit_per_s} Mbit/s, " if card.mbit_per_s else ""
        text = f"{card.name}: {speed}MTU {card.mtu}"
        if 0 < card.mbit_per_s < SLOW_CARD:
            yield warning("network", text, "check cable, switch and ethtool: it should be 1000")
        else:
            yield ok("network", text)


def check_chosen(facts: NetworkFacts) -> Iterator[Finding]:
    """Whether the interfaces that variables name are there."""
    names = [card.name for card in facts.cards]
    for variable, value in facts.chosen:
        if value.startswith("^"):  # all but these
            continue
        # `=eth0` is that name; else NCCL takes beginnings of names.
        wanted = [word.strip() for word in value.lstrip("=").split(",") if word.strip()]
        is_exact = value.startswith("=") or variable.startswith("GLOO")
        if not any(n == w if is_exact else n.startswith(w) for n in names for w in wanted):
            text = f"{variable}={value} names no interface of this node"
            yield error("interface", text, f"unset it, or name one of {', '.join(names)}")
