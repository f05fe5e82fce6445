"""Pure: stretches of time, and how much of some lies under others."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[float, float]
"""From when to when."""


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time in stretches that do not touch, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def share_under(spans: Iterable[Span], cover: Iterable[Span]) -> float:
    """The part of the time of `spans` that lies within `cover`; 1 if there are none."""
    # Copies may overlap each other: each is counted for itself.
    covers = joined(cover)
    total = under = 0.0
    for start, end in spans:
        total += end - start
        under += sum(max(0.0, min(end, last) - max(start, first)) for first, last in covers)
    return under / total if total else 1.0
