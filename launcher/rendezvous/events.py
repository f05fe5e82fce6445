"""What happened at a node, one JSON object a line: who was lost, when, what came of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path


class Events:
    """The event log of one node.

    `t_s` counts from the start of the agent, by its own monotonic clock: differences within one
    file mean something, between files they do not. `wall` is the wall clock, for a reader only.

    Args:
        file: where to; None keeps nothing.
    """

    def __init__(
        self, file: Path | None, node: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node = node
        self._clock = clock
        self._begin = clock()
        self._lock = threading.Lock()
        self._file = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = file.open("a", buffering=1, encoding="utf-8")

    def note(self, event: str, details: Mapping[str, object] | None = None) -> None:
        """Writes a line."""
        if self._file is None:
            return
        line = {
            "t_s": round(self._clock() - self._begin, 4),
            "wall": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "node": self._node,
            "event": event,
            **(details or {}),
        }
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
