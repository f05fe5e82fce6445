"""Pure: which link between two nodes is worse than the others, by what the kernels count.

Each rank knows what its connections to one other node took, the one whose wire took it longest. A
link is one direction between two nodes; with nothing to compare it with, nothing is said of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from bundlerun.launcher.why.sums import RankSums, Sent


class LinkFault(StrEnum):
    """What is wrong with a link.

    LOSSY: segments are sent again. SLOW: fewer bytes per second while any are on their way.
    FAR: an answer takes long, even with nothing on the way.
    """

    LOSSY = "lossy"
    SLOW = "slow"
    FAR = "far"


class Way(NamedTuple):
    """What one rank has sent over a link, in `wall_s` seconds."""

    source: str
    sent: Sent
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLink:
    """A link that is worse than the others.

    Args:
        source, to: names of the nodes.
        value: by `why`: the share of segments that were sent again, bytes per second, or seconds.
        usual: the median of the others. share: of the time, that it was busy.
        retransmitted: segments.
    """

    source: str
    to: str
    why: LinkFault
    value: float
    usual: float
    share: float
    retransmitted: float = 0.0

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> BadLink:
        """Of what JSON has made of it.

        Raises:
            TypeError, KeyError, ValueError: it is something else.
        """
        return cls(**{**row, "why": LinkFault(row["why"])})


_LEAST_BYTES = 1e6
"""Less says nothing of a link."""
_SHARE = 0.10
"""And it has to be busy for that much of the time: else it costs nobody much."""
_LOST, _LOST_SEGMENTS, _LOST_TIMES = 0.002, 10, 4.0
"""A link loses where so much is sent again, in so many segments, and so many times the usual."""
_SLOW_TIMES = 2.0
_QUEUED = 1.5
"""Bytes queue up on a slow link: its answers take so much longer than at best. Else it only has
small messages, which are fewer bytes per second on the best of links."""
_FAR_TIMES, _LEAST_FAR_S = 5.0, 0.002


@dataclass(frozen=True, slots=True)
class _Link:
    """All that ranks say of one."""

    num_bytes: float
    share: float
    bytes_per_s: float
    lost: float
    retransmitted: float
    least_rtt_s: float
    rtt_s: float


def ways_of(ranks: Sequence[RankSums]) -> list[Way]:
    """What ranks have sent in an epoch."""
    return [Way(each.node_name, each.sent, each.wall_s) for each in ranks if each.sent is not None]


def bad_link(ways: Sequence[Way]) -> BadLink | None:
    """The link that is worse than the others, if one is; the one that is busiest of them."""
    by_pair: dict[tuple[str, str], list[Way]] = {}
    for way in ways:
        if way.wall_s > 0 and way.sent.wire_s > 0:
            by_pair.setdefault((way.source, way.sent.to), []).append(way)
    links = {pair: _link(each) for pair, each in by_pair.items()}
    links = {pair: link for pair, link in links.items() if link.num_bytes >= _LEAST_BYTES}
    found = []
    for (source, to), link in links.items():
        others = [other for pair, other in links.items() if pair != (source, to)]
        if others and link.share >= _SHARE:
            fault = _fault(link, others)
            if fault is not None:
                why, value, usual = fault
                found.append(
                    BadLink(
                        source=source,
                        to=to,
                        why=why,
                        value=value,
                        usual=usual,
                        share=round(min(1.0, link.share), 4),
                        retransmitted=link.retransmitted,
                    )
                )
    return max(found, key=lambda each: each.share, default=None)


def _link(ways: Sequence[Way]) -> _Link:
    sent = [way.sent for way in ways]
    num_bytes = sum(each.num_bytes for each in sent)
    # Ranks of a node share its wire at one time: the busiest of them tells how long it was busy.
    busy = max(ways, key=lambda way: way.sent.wire_s / way.wall_s)
    retransmitted = sum(each.retransmitted for each in sent)
    return _Link(
        num_bytes=num_bytes,
        share=busy.sent.wire_s / busy.wall_s,
        bytes_per_s=num_bytes / busy.sent.wire_s,
        lost=retransmitted / max(1.0, sum(each.segments for each in sent)),
        retransmitted=retransmitted,
        least_rtt_s=min(each.least_rtt_s for each in sent),
        rtt_s=max(each.rtt_s for each in sent),
    )


def _fault(link: _Link, others: Sequence[_Link]) -> tuple[LinkFault, float, float] | None:
    """Why, its number, and the usual one."""
    # First what explains the rest: who loses is slow, too, and so is who is far away.
    lost = statistics.median(other.lost for other in others)
    if link.lost >= max(_LOST, _LOST_TIMES * lost) and link.retransmitted >= _LOST_SEGMENTS:
        return LinkFault.LOSSY, link.lost, lost
    rtt_s = statistics.median(other.least_rtt_s for other in others)
    if link.least_rtt_s >= max(_LEAST_FAR_S, _FAR_TIMES * rtt_s):
        return LinkFault.FAR, link.least_rtt_s, rtt_s
    rate = statistics.median(other.bytes_per_s for other in others)
    if link.bytes_per_s * _SLOW_TIMES <= rate and link.rtt_s >= _QUEUED * link.least_rtt_s:
        return LinkFault.SLOW, link.bytes_per_s, rate
    return None
