"""What this rank sends to other nodes, as the kernel counts it: in the epoch, and lately."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from bundlerun.launcher.why.sheet import Sheet
from bundlerun.launcher.why.sockets import Traffic, growth, traffic
from bundlerun.workers.rank.arrival.session import Session

EVERY_S = 2.0
"""Seconds between two looks: each asks the kernel about every connection."""


class Sending:
    """Looks now and then; of nodes that much is sent to, the one counts whose wire took longest.

    Args:
        session: this rank's place.
        sheet: where the epoch's numbers go.
        look: what was sent so far, by address.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        session: Session,
        sheet: Sheet,
        look: Callable[[], Mapping[str, Traffic]] = traffic,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = {node.address: number for number, node in enumerate(session.nodes)}
        self._own = session.place.node
        self._has_others = len(session.nodes) > 1
        self._sheet = sheet
        self._look = look
        self._clock = clock
        self._at_begin: Mapping[str, Traffic] = {}
        self._before: Mapping[str, Traffic] = {}
        self._looked_at = 0.0
        self.lately: Sequence[float] = (-1.0, 0.0, *map(float, Traffic()))
        """Between the last two looks: node, seconds, and what of `Traffic`; node -1: nothing."""

    def restart(self) -> None:
        """An epoch begins."""
        if self._has_others:
            self._at_begin = self._before = self._look()
            self._looked_at = self._clock()

    def look(self, *, at_once: bool = False) -> None:
        """Looks where it is time to."""
        now = self._clock()
        passed_s = now - self._looked_at
        if not self._has_others or (passed_s < EVERY_S and not at_once):
            return
        found = self._look()
        most = self._most(found, self._at_begin)
        if most is not None:
            self._sheet.sends(*most)
        lately = self._most(found, self._before)
        if lately is not None and passed_s >= EVERY_S:
            self.lately = (float(lately[0]), passed_s, *map(float, lately[1]))
        self._before, self._looked_at = found, now

    def _most(
        self, found: Mapping[str, Traffic], before: Mapping[str, Traffic]
    ) -> tuple[int, Traffic] | None:
        grown = growth(found, before)
        to = {self._nodes[a]: each for a, each in grown.items() if a in self._nodes}
        to.pop(self._own, None)
        if not to:
            return None
        # Of those that carry the work: answers to a word now and then may take long, too.
        least = max(each.num_bytes for each in to.values()) / 10
        working = [number for number, each in to.items() if each.num_bytes >= least]
        node = max(working, key=lambda number: to[number].wire_s)
        return node, to[node]
