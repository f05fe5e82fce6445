"""Whether there is anything that replicas could compare."""

from __future__ import annotations

from collections.abc import Sequence

ONE_REPLICA = "off, one replica"


def are_compared(widths: Sequence[int], num_bundles: int) -> bool:
    """Pure: whether a stage has a second replica; the same on all ranks, whatever theirs has.

    Args:
        widths: of the stages of a bundle.
        num_bundles: of the round.
    """
    return max(widths) * num_bundles > 1
