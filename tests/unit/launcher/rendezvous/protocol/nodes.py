"""A node of a cluster without sockets, and its connection."""

from __future__ import annotations

from dataclasses import dataclass, field

from bundlerun.launcher.rendezvous.protocol.messages import Round, RoundId
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.state import State


@dataclass
class Link:
    """A connection of a node to a candidate, both ways; what is on its way waits here."""

    candidate: int
    up: list[object] = field(default_factory=list)
    down: list[object] = field(default_factory=list)
    is_known: bool = False


@dataclass
class Node:
    """An agent: a member, and where its endpoint is in the list, a coordinator.

    workers_in: the round that its workers are in, which may be the one before its own.
    """

    member: Member
    state: State | None
    link: Link | None = None
    frozen_at: float | None = None
    entered: list[Round] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)
    workers_in: RoundId | None = None

    @property
    def is_frozen(self) -> bool:
        """True while it is stopped."""
        return self.frozen_at is not None
