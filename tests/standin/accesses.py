"""Two streams at one piece of memory, one of them writing, with nothing between them: a fault.

    side stream        | write x |
    default stream                    | read x |     fault, unless it waits for the side stream

Whether the two happened to come in the right order does not matter: the clocks tell.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.standin.memory import Block
from tests.standin.places import Record
from tests.standin.queues import Clock

Use = tuple[Block, int, int, bool]
"""Memory, the bytes from and to, and whether they are written."""


def check_uses(
    uses: Iterable[Use], queue: int, index: int, clock: Clock, name: str, record: Record
) -> None:
    """Notes what a stream is about to do to memory; a fault if another stream may be at it.

    Args:
        uses: all that it does.
        queue: number of the stream.
        index: how many things the stream has been given with this one.
        clock: what comes before.
        name: of what it does, for messages.
        record: gets the faults.
    """
    for block, first, last, writes in uses:
        for (other, low, high, wrote), used in block.uses.items():
            overlaps = low < last and first < high and (writes or wrote)
            if other != queue and overlaps and clock.get(other, 0) < used:
                # One fault is enough of what may be a thousand.
                clock = {**clock, other: used}
                record.fault(
                    "no wait_event",
                    f"{name} in stream {queue} {_verb(writes)} memory that stream {other} "
                    f"{_verb(wrote)}, and does not wait for it",
                )
        block.uses[queue, first, last, writes] = index


def _verb(writes: bool) -> str:
    return "writes" if writes else "reads"


def check_end(block: Block, clock: Clock, record: Record) -> bool:
    """Whether memory may be given to other tensors of the stream that it was taken for.

    Args:
        block: that was given back.
        clock: what comes before all that this stream is given from now on.
        record: gets the fault.
    """
    unsafe = {
        stream
        for (stream, _, _, _), index in block.uses.items()
        if stream != block.queue and stream not in block.told and clock.get(stream, 0) < index
    }
    for stream in unsafe:
        record.fault(
            "no record_stream",
            f"memory of stream {block.queue} was given back while stream {stream} may be using it",
        )
    return not unsafe
