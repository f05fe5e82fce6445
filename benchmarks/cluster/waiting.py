"""Waits for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.05


def comes_true(check: Callable[[], object], limit_s: float, poll_s: float = POLL_S) -> bool:
    """Whether `check` holds within a time; returns as soon as it does."""
    deadline = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def wait_for(what: str, check: Callable[[], object], limit_s: float) -> None:
    """Waits until `check` holds; raises TimeoutError."""
    if not comes_true(check, limit_s):
        raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
