"""Pure: what a node and a coordinator both wish for; each also has wishes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bundlerun.launcher.rendezvous.protocol.messages import Message
from bundlerun.launcher.run_folder.events import EventName

COORDINATOR = ""
"""Whom a node sends to, which talks to nobody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send this message.

    Attributes:
        message: what to say.
        to: the name of a node, or `COORDINATOR`.
    """

    message: Message
    to: str = COORDINATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line for the event log.

    Attributes:
        event: what has happened.
        details: what else stands in the line.
    """

    event: EventName
    details: Mapping[str, object]
