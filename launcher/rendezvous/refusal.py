"""Why a candidate does not take this node in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class RefusalCause(Enum):
    """What is in the way.

    NOT_LISTENING: its endpoint refuses connections. SILENT: no answer, or no way there.
    STRANGER: what listens there is no coordinator of ours. TOKEN: it goes by another token or
    another job. DIFFERS: its node has other options, files or versions.
    """

    NOT_LISTENING = auto()
    SILENT = auto()
    STRANGER = auto()
    TOKEN = auto()
    DIFFERS = auto()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate that could not be reached, or did not take this node; `text` is for a reader."""

    cause: RefusalCause
    text: str
