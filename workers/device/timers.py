"""How long a device works on parts of a stream, in seconds, without waiting for it.

host      begin(key) | launches ........ | end         launches more
stream       mark                   mark |             ...
seconds                                  the time between the two marks, once both are reached
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Generic, NamedTuple, TypeVar

import torch

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event

K = TypeVar("K", bound=str)


class _Span(NamedTuple):
    key: str
    start: Event
    end: Event


class StreamTimer(Generic[K]):
    """Adds up what the current stream of one thread spends between marks, for each key.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._under_way: deque[_Span] = deque()
        self._spare: list[Event] = []

    def begin(self) -> Event:
        """A mark here."""
        self._collect()
        return self._mark()

    def end(self, key: K, start: Event) -> None:
        """Adds the time from `start` to here to a key, as soon as it is known."""
        self._under_way.append(_Span(key, start, self._mark()))

    def _mark(self) -> Event:
        made = self._spare.pop() if self._spare else door.timer(self._device)
        made.record(door.current_stream(self._device))
        return made

    def _collect(self) -> None:
        """Counts the spans that are over; waits for none, so that few marks are kept."""
        while self._under_way and self._under_way[0].end.query():
            self._count(self._under_way.popleft())

    def _count(self, span: _Span) -> None:
        self._seconds[span.key] += span.start.elapsed_time(span.end) / 1000
        self._spare += [span.start, span.end]

    def known(self, key: K) -> float:
        """The spans of a key that are over, as far as has been looked; waits for none."""
        return self._seconds[key]

    def seconds(self, key: K) -> float:
        """All spans of a key since the last `restart`; waits for those under way."""
        while self._under_way:
            self._under_way[0].end.synchronize()
            self._count(self._under_way.popleft())
        return self._seconds[key]

    def restart(self) -> None:
        """Forgets all spans, those under way as well."""
        # Their marks are still to be reached, so they are not used again.
        self._under_way.clear()
        self._seconds.clear()
