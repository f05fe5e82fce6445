"""Waiting for what a thread or another process does."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cluster.waiting import comes_true

LIMIT_S = 60.0


def wait_until(is_so: Callable[[], object], why: str = "", *, limit_s: float = LIMIT_S) -> None:
    """Returns as soon as it is so; after the limit that is a failure, for which `why` stands."""
    assert comes_true(is_so, limit_s, poll_s=0.01), why
