"""What one rank did in an epoch, in seconds: plain numbers that travel to whoever judges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Sent(NamedTuple):
    """What a rank sent to another node, the one whose wire took it longest.

    Args:
        to: name of the node; `#3` is the fourth one of the round.
        num_bytes: that were confirmed.
        wire_s: in which bytes were on their way, and the receiver had room.
        retransmitted: segments that were sent again, as they were lost or late. segments: sent.
        least_rtt_s: a segment and its answer, at best. rtt_s: lately; longer where bytes queue up.
    """

    to: str
    num_bytes: float
    wire_s: float
    retransmitted: float = 0.0
    segments: float = 0.0
    least_rtt_s: float = 0.0
    rtt_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSums:
    """One rank's epoch, or what there is of it yet.

    Args:
        wall_s: how long it took, seconds.
        seconds: of each phase.
        num_microbatches: that its bundle did.
        cpu_s: its own thread had a core; 0 where the kernel does not tell.
        run_delay_s: its own thread was ready and had none.
        sent: see `Sent`; None: nothing to another node.
    """

    rank: int
    node: int
    node_name: str
    local_rank: int
    bundle: int
    stage: int
    replica: int
    wall_s: float
    seconds: Mapping[str, float]
    num_microbatches: int
    cpu_s: float = 0.0
    run_delay_s: float = 0.0
    sent: Sent | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> RankSums:
        """Of what JSON has made of it.

        Raises:
            TypeError, KeyError: it is something else.
        """
        sent = row.get("sent")
        return cls(**{**row, "sent": None if sent is None else Sent(*sent)})

    @property
    def who(self) -> str:
        """For people."""
        return (
            f"rank {self.rank} (node {self.node_name}, stage {self.stage} of bundle {self.bundle})"
        )
