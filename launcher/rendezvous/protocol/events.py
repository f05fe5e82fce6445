"""Pure: what a coordinator can be told of; what it makes of that is in `coordinator`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bundlerun.launcher.rendezvous.protocol.messages import (
    Accept,
    Beat,
    Close,
    Closed,
    Hosted,
    Leave,
    Report,
    Round,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A node has registered; `report` is its first on this connection."""

    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A node that is registered has said something."""

    name: str
    message: Report | Beat | Hosted | Accept | Leave | Close


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The connection of a node is down."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """A node has been silent for longer than its lease."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What came of a claim: its number and time, or what stands in its way.

    Attributes:
        term: of the coordinator that made the claim.
        number: that the round has got; 0 where something is in the way, as below.
        at: when the claim was made.
        others: claims after the base, made by others.
        highest_term: one in the folder that is above the claim's own.
        over: the job has ended, while the nodes that are here were cut off.
        error: why the folder cannot be used.
    """

    term: int
    number: int = 0
    at: float = 0.0
    others: tuple[Round, ...] = ()
    highest_term: int = -1
    over: Closed | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What the fence says, after a beat of its own: due when a coordinator begins to keep a round.

    It does so after its election, and after a pause in which it may have been taken for dead.
    """

    claims: tuple[Round, ...]
    over: Closed | None = None


Event: TypeAlias = Arrived | Received | Broken | Expired | Claimed | Looked
