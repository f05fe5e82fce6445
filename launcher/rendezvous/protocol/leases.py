"""Leases: who has been silent for too long, by this machine's monotonic clock."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Leases(Generic[K]):
    """When each of some others was last heard.

    Our own pause is not their silence: when `look` comes late (a stopped process, a machine that
    swaps), what they sent meanwhile is still unread, and everybody gets that time again.

    Args:
        lease_s: silence that is too long.
        look_every_s: how often `look` is called.
        now: the time, seconds of a monotonic clock.
    """

    def __init__(self, lease_s: float, *, look_every_s: float, now: float) -> None:
        self._lease_s = lease_s
        self._look_every_s = look_every_s
        self._looked_at = now
        self._heard: dict[K, float] = {}

    def hear(self, key: K, now: float) -> None:
        """A sign of life."""
        self._heard[key] = now

    def forget(self, key: K) -> None:
        """Watches this one no more."""
        self._heard.pop(key, None)

    def look(self, now: float) -> list[K]:
        """Those whose lease has run out; due every `look_every_s` seconds."""
        late_s = now - self._looked_at - self._look_every_s
        self._looked_at = now
        if late_s > self._lease_s / 3:
            self._heard = {key: heard + late_s for key, heard in self._heard.items()}
        return [key for key, heard in self._heard.items() if now - heard > self._lease_s]
