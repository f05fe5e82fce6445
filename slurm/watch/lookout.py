"""Is the job's first node still there? Asked by the others, by a connection to it.

[1] answered, or refused     the node lives, whatever became of its agent
[2] silence for LOSS_S       it is lost ...
[3] silence of all           ... unless nobody else answers either: then this node is cut off

A connection needs nothing of the other side, and shows the machine, not one of its processes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LOSS_S = 4.0
"""Silence after which a node counts as lost, seconds."""
NEVER_S = 60.0
"""The same for a node that has never answered, seconds."""
PERIOD_S = 1.0
PROBE_S = 1.0
"""How long one connection may take, seconds; a node that lives refuses at once."""


def answers(address: str, port: int, *, wait_s: float = PROBE_S) -> bool:
    """Whether the machine at `address` lives: it accepts a connection, or refuses it."""
    try:
        with socket.create_connection((address, port), timeout=wait_s):
            return True
    # [1] A refusal comes from the machine itself: it lives, nothing listens there.
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


@dataclass(slots=True, kw_only=True)
class Lookout:
    """The watch of one node over the first.

    Args:
        first: its address.
        others: addresses of further nodes, to tell its loss from this node's own.
        port: a port that the nodes can reach each other at.
        pulse: what the first node's batch process rewrites every second.
        clock: monotonic, seconds.
    """

    first: str
    others: Sequence[str]
    port: int
    pulse: Callable[[], str] = str
    probe: Callable[[str, int], bool] = answers
    clock: Callable[[], float] = time.monotonic
    is_lost: bool = field(default=False, init=False)
    _has_answered: bool = field(default=False, init=False)
    _last_pulse: str = field(default="", init=False)
    _silent_since: float | None = field(default=None, init=False)
    _next: float = field(default=0.0, init=False)

    @property
    def is_silent(self) -> bool:
        """Whether the first node does not answer at present."""
        return self._silent_since is not None

    def look(self) -> None:
        """Asks, at most once a period."""
        now = self.clock()
        if now < self._next or self.is_lost:
            return
        self._next = now + PERIOD_S
        if self._is_alive():
            self._silent_since = None
            return
        # [2] The clock starts with the first silence, so that one lost packet does not end a job.
        if self._silent_since is None:
            self._silent_since = now
        # One that has never answered may be out of reach for another reason: more patience.
        if self.clock() - self._silent_since >= (LOSS_S if self._has_answered else NEVER_S):
            # [3] Where nobody else answers either, this node is the one that is cut off.
            self.is_lost = not self.others or any(
                self.probe(other, self.port) for other in self.others
            )

    def _is_alive(self) -> bool:
        if self.probe(self.first, self.port):
            self._has_answered = True
            return True
        # The file moves although no connection gets through: the batch script is alive.
        before, self._last_pulse = self._last_pulse, self.pulse()
        return before not in ("", self._last_pulse)
