"""What a rank holds of micro-batches in flight, pass by pass.

1f1b          F0 F1 B0 F2 B1 ..     a forward adds what it keeps, a backward lets it go
zero-bubble   F0 B0 F1 B1 W0 ..     an input pass adds what the weight pass needs, which lets all go
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from bundlerun.launcher.layout.schedule import Order, Pass, Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one micro-batch has in flight on one chunk, bytes.

    Args:
        forward: that a forward leaves.
        split: that an input pass leaves beside, until the weight pass.
    """

    forward: int
    split: int = 0


def most_held(order: Order, kept: Sequence[Kept]) -> int:
    """The most bytes that are held at once, passes under way left out.

    Args:
        order: of a rank.
        kept: by the rank's own chunk.
    """
    has_weight_pass = {action.key for action in order if action.kind is Pass.WEIGHT}
    now = most = 0
    for action in order:
        of_chunk = kept[action.chunk]
        if action.kind is Pass.FORWARD:
            now += of_chunk.forward
        elif action.kind is Pass.WEIGHT:
            now -= of_chunk.forward + of_chunk.split
        elif action.key in has_weight_pass:
            now += of_chunk.split
        else:
            now -= of_chunk.forward
        most = max(most, now)
    return most


@lru_cache(maxsize=4096)
def order_of(pipeline: Pipeline, stage: int, num_microbatches: int) -> Order:
    """The order of the first replica of a stage, which has the most to do.

    Its end is left out where it only repeats: the most in flight is that of the whole step.
    """
    if pipeline.schedule not in ("gpipe", "interleaved"):
        num_microbatches = min(num_microbatches, 8 * pipeline.shape.size)
    return pipeline.order(stage, 0, num_microbatches)
