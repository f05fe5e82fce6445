"""In which order buckets leave, so that the next forward may begin before all sums are there.

    last backward   b0 b1 b3 b4                             as they are final: the wire is busy
    then                        b9 b8 b7 b6 b5 b2           what the next forward needs first
    next forward                 f9 f8 f7 ... f3  f2 f1 f0
    last backward                                   b0 b1   the wire has a pause of this length only

Buckets have their numbers from the end of the model on. Those that would only stand in a queue when
the last backward is over leave from the front of the model on. One of the early ones is kept back
until the end: what comes last is needed last, so that little is left to do before the next bucket.

Pure. All replicas know the same numbers, so all have one order (I6).
"""

from __future__ import annotations

from typing import NamedTuple

_UNDER_WAY = 3
"""Buckets that have left before the last backward is over and have not come: two that are on the
wire, and the one that is kept back."""
_KEPT_BACK = 2
"""The number of the bucket that leaves last: of the end of the model, and not the first to be
final, which begins the exchange. Bucket 0 has the small sums."""


class Leaving(NamedTuple):
    """In which order buckets leave.

    order: their numbers.
    num_early: how many of these leave as they are final; all others once all are.
    """

    order: list[int]
    num_early: int


def leaving(num_buckets: int, headway: float) -> Leaving:
    """The order for a step.

    Args:
        num_buckets: of a step.
        headway: buckets that had come when the last backward of an earlier step was over, mean over
            the replicas.
    """
    num_early = min(num_buckets, int(headway) + _UNDER_WAY)
    early = list(range(num_early))
    late = list(reversed(range(num_early, num_buckets)))
    if late and num_early > _KEPT_BACK + 1:
        early.remove(_KEPT_BACK)
        late.append(_KEPT_BACK)
    return Leaving(early + late, len(early))
