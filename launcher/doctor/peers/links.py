"""Pure: what the measures of all links say, and in which order they are taken.

Each direction of each pair is a link. Which is slow is said against the others: what a network
should do nobody here knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning
from bundlerun.launcher.doctor.peers.wire import Reach

ONE_AT_A_TIME = 16
"""Up to so many nodes one link is measured at a time; above, as many as have no node in common."""
SLOW = 0.5
"""Of what the faster links do."""
FAR_S, FAR = 0.002, 5.0
"""There and back: a link is far that takes longer than the first, and so many times the others'."""
VERY_FAR_S = 0.005
SKEW_S = 2.0
_MOST_SHOWN = 12
_ALL_S, _MOST_S, _LEAST_S = 8.0, 0.3, 0.1

Pair = tuple[int, int]
"""Indices of source and target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One direction. port: the one that is known; free: one that the target was given.

    rtt_s, bytes_per_s: of small messages and of a stream; None where none was possible.
    """

    source: int
    target: int
    port: Reach
    free: Reach
    rtt_s: float | None = None
    bytes_per_s: float | None = None

    @property
    def pair(self) -> Pair:
        """Source and target."""
        return self.source, self.target


def seconds_each(num_nodes: int) -> float:
    """How long a stream takes, so that all of them take some seconds."""
    turns = sum(1 for _ in turns_of(num_nodes))
    return min(_MOST_S, max(_LEAST_S, _ALL_S / max(1, turns)))


def turns_of(num_nodes: int) -> Iterator[list[Pair]]:
    """Links that are measured at the same time, turn by turn; each link once.

        4 nodes in a circle that turns round node 0:    0-3 1-2 | 0-2 3-1 | 0-1 2-3

    Each such line is two turns: one per direction.
    """
    numbers = range(num_nodes)
    if num_nodes <= ONE_AT_A_TIME:
        for a in numbers:
            for b in numbers:
                if a < b:
                    yield [(a, b)]
                    yield [(b, a)]
        return
    # An odd node out sits opposite to nobody.
    circle = [*numbers, *([-1] if num_nodes % 2 else [])]
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = list(zip(circle[:half], reversed(circle[half:]), strict=True))
        line = [(a, b) for a, b in pairs if a >= 0 and b >= 0]
        yield line
        yield [(b, a) for a, b in line]
        circle = [circle[0], circle[-1], *circle[1:-1]]


def usual(rates: Sequence[float]) -> float:
    """What the faster links do: the rate that a quarter of them reach; 0 where there is none."""
    ordered = sorted(rates)
    return ordered[round(0.75 * (len(ordered) - 1))] if ordered else 0.0


def slow_links(measures: Sequence[Measured]) -> list[Measured]:
    """Those that do less than half of what is usual."""
    rates = [m.bytes_per_s for m in measures if m.bytes_per_s]
    return [m for m in measures if m.bytes_per_s and m.bytes_per_s < SLOW * usual(rates)]


def check_links(
    names: Mapping[int, str], measures: Sequence[Measured], heard: Mapping[Pair, bool]
) -> Iterator[Finding]:
    """All that is to be said about links.

    Args:
        names: of the nodes that are there, by index.
        measures: of all directions between them.
        heard: for links without any connection both ways, whether a datagram arrived.
    """
    yield from _check_reach(names, measures, heard)
    yield from _check_rates(names, measures)
    yield from _check_latency(names, measures)


# ---------------------------------------------------------------- ports


def _check_reach(
    names: Mapping[int, str], measures: Sequence[Measured], heard: Mapping[Pair, bool]
) -> Iterator[Finding]:
    shut = {m.pair: m for m in measures if m.port is not Reach.OK}
    told: set[Pair] = set()
    found = []
    for pair, measured in shut.items():
        a, b = (names[index] for index in pair)
        back = pair[::-1]
        if pair in told:
            continue
        if back in shut and heard.get(pair) is False and heard.get(back) is True:
            # A connection needs both ways; datagrams show which one is missing.
            told.add(back)
            text = f"packets from {a} to {b} are dropped; those from {b} arrive"
            found.append(error(f"{a} -> {b}", text, f"let packets from {a} in at {b}'s firewall"))
        elif back in shut and heard.get(pair) is True and heard.get(back) is False:
            continue  # told from the other side
        else:
            text = f"{a} cannot connect to {b}: {measured.port}"
            mend = f"open TCP from {a} to {b} in firewalls and security groups, on all ports"
            found.append(error(f"{a} -> {b}", text, mend))
    for m in measures:
        if m.port is Reach.OK and m.free is not Reach.OK:
            a, b = names[m.source], names[m.target]
            text = f"{a} reaches the known port of {b}, but no free one: {m.free}"
            mend = (
                f"open TCP from {a} to {b} for the ports of net.ipv4.ip_local_port_range, which "
                "stores and ranks take"
            )
            found.append(error(f"{a} -> {b}", text, mend))
    yield from _some(found)


# ---------------------------------------------------------------- rates


def _check_rates(names: Mapping[int, str], measures: Sequence[Measured]) -> Iterator[Finding]:
    stalled = [m for m in measures if m.bytes_per_s == 0.0]
    for m in stalled:
        a, b = names[m.source], names[m.target]
        text = "small messages pass, and none of a stream"
        mend = f"compare the MTU of {a}, {b} and all between (ping -M do -s SIZE)"
        yield error(f"{a} -> {b}", text, mend)
    rates = [m.bytes_per_s for m in measures if m.bytes_per_s]
    if not rates:
        return
    slow = slow_links(measures)
    others = f"others {rate_text(usual(rates))}"
    mend = "check cable, card (ethtool), switch port, and who else uses it"
    left = set(slow)
    for index, name in names.items():
        for kind, mine in (
            ("receives", [m for m in measures if m.target == index and m.bytes_per_s]),
            ("sends", [m for m in measures if m.source == index and m.bytes_per_s]),
        ):
            # With two nodes a link is all that one sends.
            if len(mine) >= 2 and set(mine) <= left:
                left -= set(mine)
                most = max(m.bytes_per_s or 0.0 for m in mine)
                text = f"all that {name} {kind} is slow: {rate_text(most)} at most, {others}"
                yield warning(f"{name} {kind}", text, mend)
    yield from _some(
        [
            warning(
                f"{names[m.source]} -> {names[m.target]}",
                f"slow: {rate_text(m.bytes_per_s or 0.0)}, {others}",
                mend,
            )
            for m in slow
            if m in left
        ]
    )
    fast = [rate for m in measures if m not in slow and (rate := m.bytes_per_s)]
    text = (
        f"{len(fast)} of {len(measures)} directions do {_range(min(fast), max(fast))}, one stream"
    )
    yield ok("rates", text)


def rate_text(bytes_per_s: float) -> str:
    """A rate for people."""
    mbit = bytes_per_s * 8 / 1e6
    if mbit >= 10_000:
        return f"{mbit / 1000:.0f} Gbit/s"
    if mbit >= 1000:
        return f"{mbit / 1000:.1f} Gbit/s"
    return f"{mbit:.0f} Mbit/s" if mbit >= 10 else f"{mbit:.1f} Mbit/s"


def _range(least: float, most: float) -> str:
    first, last = rate_text(least), rate_text(most)
    return first if first == last else f"{first} to {last}"


# ---------------------------------------------------------------- latency


def _check_latency(names: Mapping[int, str], measures: Sequence[Measured]) -> Iterator[Finding]:
    times = sorted(m.rtt_s for m in measures if m.rtt_s is not None)
    if not times:
        return
    quick = times[round(0.25 * (len(times) - 1))]
    far = [
        m
        for m in measures
        if m.rtt_s is not None
        and m.source < m.target
        and (m.rtt_s > VERY_FAR_S or (m.rtt_s > FAR_S and m.rtt_s > FAR * quick))
    ]
    yield from _some(
        [
            warning(
                f"{names[m.source]} - {names[m.target]}",
                f"{(m.rtt_s or 0) * 1e3:.1f} ms there and back, others {quick * 1e3:.2f} ms",
                "place them next to each other, or keep bundles inside a node (plan shows links)",
            )
            for m in far
        ]
    )
    text = f"{times[0] * 1e3:.2f} to {times[-1] * 1e3:.2f} ms there and back, 64 bytes"
    yield ok("latency", text)


def check_clocks(names: Mapping[int, str], ahead_s: Mapping[int, float]) -> Finding:
    """Clocks against the first node's. ahead_s: by index, seconds.

    No decision of a run compares clocks of two nodes; times in logs do.
    """
    worst = max(ahead_s, key=lambda index: abs(ahead_s[index]), default=None)
    if worst is None:
        return ok("clocks", "of one node")
    skew_s = ahead_s[worst]
    if abs(skew_s) > SKEW_S:
        how = "ahead" if skew_s > 0 else "behind"
        text = f"{names[worst]}'s is {abs(skew_s):.1f} s {how}"
        return warning("clocks", text, "start chrony or ntpd there: logs and file times mislead")
    return ok("clocks", f"within {max(abs(skew_s), 0.001):.3f} s")


def _some(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The first few, and how many more there are."""
    yield from findings[:_MOST_SHOWN]
    if len(findings) > _MOST_SHOWN:
        more, first = len(findings) - _MOST_SHOWN, findings[0]
        make = error if first.level == "error" else warning
        yield make("links", f"and {more} more links like these", "--json lists all")
