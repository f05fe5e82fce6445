"""Paces what is sent beside training, so that it takes no more than a share of a link.

    share 0.25     | part |  pause           | part |  pause           | part | ...
                   0      1                  4      5                  8

A part counts as sent when the other has told so: then its time is that of the link, not that of a
buffer of the kernel. The link is taken to be as fast as the fastest of the last parts were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

PART_BYTES = 4 << 20
"""Of a part: the more there are, the more evenly they come."""
_MOST_REMEMBERED = 32
"""Parts by which the link is judged: it may become slower, and others may leave it."""


class LinkShare:
    """A share of one link.

    Args:
        share: of what the link can do, above 0 and up to 1; 1: no pauses.
        clock: monotonic, seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        share: float = 1.0,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._share = share
        self._clock = clock
        self._sleep = sleep
        self._rates: deque[float] = deque(maxlen=_MOST_REMEMBERED)
        self._begun_at = 0.0
        self.paused_s = 0.0
        """All pauses so far, seconds."""

    @property
    def part_bytes(self) -> int:
        """Bytes that are sent, and told to have come, at one time; 0: there is no need for that."""
        return 0 if self._share >= 1 else PART_BYTES

    @property
    def bytes_per_s(self) -> float:
        """What the link can do, as far as known; 0 before the first part."""
        return max(self._rates, default=0.0)

    def begins(self) -> None:
        """Says that a part is being sent."""
        self._begun_at = self._clock()

    def sent(self, num_bytes: int) -> None:
        """Says that the other has it, and waits as long as the share demands."""
        took_s = self._clock() - self._begun_at
        pause_s = self.pause_s(num_bytes, took_s)
        self.paused_s += pause_s
        if pause_s:
            self._sleep(pause_s)

    def pause_s(self, num_bytes: int, took_s: float) -> float:
        """Seconds to wait after a part that took `took_s`; remembers how fast that was."""
        if took_s > 0:
            self._rates.append(num_bytes / took_s)
        if self._share >= 1 or not self._rates:
            return 0.0
        # Where others use the link, too, a part has taken longer, and the pause is shorter by that.
        return max(0.0, num_bytes / (self._share * self.bytes_per_s) - took_s)
