"""Which link between two nodes is worse than the others for a while, as the run goes.

What counts as bad is what `bundlerun why` says (`launcher.why.links`), of what ranks have sent
lately. Two looks in a row have to say the same. Nothing is decided by it, so each rank may look
when it likes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.links import BadLink, Way, bad_link
from bundlerun.launcher.why.sums import Sent
from bundlerun.workers.shares.sending import EVERY_S
from bundlerun.workers.shares.spent import Spent

_LOOK_S = 1.5 * EVERY_S
"""By then every rank has looked once more."""


class LinkNews(NamedTuple):
    """A link that is bad from now on; None: the one that was is so no more."""

    link: BadLink | None


class Links:
    """Looks at what all ranks have sent, now and then.

    Args:
        topology: of the round.
        nodes: their names, in order.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        topology: Topology,
        nodes: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topology = topology
        self._nodes = nodes
        self._clock = clock
        self._looked_at = clock()
        self._before: object = None
        """What the last look has said."""
        self._told: object = None

    def see(self, spent: Mapping[int, Spent]) -> LinkNews | None:
        """What has changed."""
        if len(self._nodes) < 2 or self._clock() - self._looked_at < _LOOK_S:
            return None
        self._looked_at = self._clock()
        found = bad_link([self._way(rank, each) for rank, each in spent.items() if each.node >= 0])
        key = None if found is None else (found.source, found.to, found.why)
        last, self._before = self._before, key
        if key != last or key == self._told:
            return None
        self._told = key
        return LinkNews(found)

    def _way(self, rank: int, each: Spent) -> Way:
        sent = Sent(
            self._nodes[int(each.node)],
            each.num_bytes,
            each.wire_s,
            each.retransmitted,
            each.segments,
            each.least_rtt_s,
            each.rtt_s,
        )
        return Way(self._nodes[self._topology.places[rank].node], sent, each.sent_wall_s)
