"""What a stage needs in memory at the least, and which parts of the model fit for that reason.

The memory of a plan is worked out elsewhere, exactly; this is quick and never more than that.
"""

from __future__ import annotations

from collections import deque

from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.launcher.planning.model_costs import ModelCosts, UpdateCosts
from bundlerun.launcher.planning.search.frame import Frame

_STEADY = 8
"""Micro-batches per device after which no schedule but gpipe has more in flight."""


def in_flight(frame: Frame, share: int) -> list[int]:
    """Per stage, what its first rank holds at once of a bundle's `share` micro-batches."""
    pipeline = frame.pipeline
    if frame.schedule == "gpipe":
        return [-(-share // width) for width in frame.shape.widths]
    few = min(share, _STEADY * frame.chunks * frame.shape.size)
    return [max_in_flight(pipeline.order(s, 0, few)) for s in range(frame.shape.num_stages)]


class Needs:
    """Bytes of parts of a model, for micro-batches of one size."""

    def __init__(self, costs: ModelCosts, update: UpdateCosts) -> None:
        self._costs = costs
        self._state = 1 + update.state_share

    def of(self, first: int, end: int, held: int, *, again: bool = False) -> float:
        """Of the pieces from `first` to before `end`, with so many micro-batches in flight.

        Args:
            again: whether activations are computed again, so that one micro-batch has all of them.
        """
        costs = self._costs
        still = sum(costs.total(name, first, end) for name in ("parameter_bytes", "buffer_bytes"))
        still += self._state * costs.total("trained_bytes", first, end)
        for shared in costs.shared:
            if any(first <= piece < end for piece in shared.pieces):
                still += shared.num_bytes * (1 + self._state * shared.is_trained)
        kept = costs.total("kept_bytes", first, end)
        return still + (min(held, 1) if again else held) * kept

    def first_starts(self, limit: float, held: int, *, again: bool = False) -> list[int]:
        """Per end, the first start from which on the pieces fit; the end itself: none does.

        Args:
            limit: bytes.
            held: micro-batches in flight.
            again: as in `of`.
        """
        pieces = self._costs.pieces
        found = [0]
        start = 0
        # Numbers of pieces whose peaks are not below a later one's: the first has the largest.
        peaks: deque[int] = deque()
        for end in range(1, len(pieces) + 1):
            peak = pieces[end - 1].peak_bytes
            while peaks and pieces[peaks[-1]].peak_bytes <= peak:
                peaks.pop()
            peaks.append(end - 1)
            while start < end:
                while peaks[0] < start:
                    peaks.popleft()
                largest = pieces[peaks[0]].peak_bytes
                if self.of(start, end, held, again=again) + largest <= limit:
                    break
                start += 1
            found.append(start)
        return found
