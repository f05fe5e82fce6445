"""What a node and a coordinator say to each other, and how it looks on the wire.

    node                          coordinator
      | ----- Report ------------> |     who I am, what I have promised and accepted
      | <---- Lead(term) --------- |     follow me
      | ----- Report ------------> |     I do (or: I have promised a higher term)
      | <---- Host --------------- |     first node of a round only: open its store
      | ----- Hosted(port) ------> |
      | <---- Propose ------------ |     this would be the next round
      | ----- Accept ------------> |
      | <---- Go ----------------- |     all have accepted: it is
      | <---> Beat / Pulse <-----> |     both ways, all the time
      | <---- Over --------------- |     somebody died, joins, or wants a restart

One message is one line of JSON. Nothing is unpickled, and every field is checked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, is_dataclass
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from bundlerun.launcher.ranks.cause import EndCause

MAX_LINE_BYTES = 4 << 20
"""Longest line either side reads: a round of some 20,000 nodes."""

RoundId: TypeAlias = tuple[int, ...]
"""(term, number); later rounds have greater ones."""

NO_ROUND: RoundId = (-1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A node's place in a round.

    `name` is the node's stable identity; `incarnation` is new with each start of its agent, which
    has no memory of what the one before it promised. `candidate` is the index of the endpoint it
    keeps, -1 for none; `num_workers` is 0 as long as torch has not told.
    """

    name: str
    incarnation: str
    address: str
    num_workers: int
    candidate: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Who trains together: the seats in node order, and the store that the first of them keeps.

    `is_fenced`: every seat sees the fence folder, so that the folder decides who goes on after it.
    """

    term: int
    number: int
    seats: tuple[Seat, ...]
    store_port: int = 0
    is_fenced: bool = False

    @property
    def id(self) -> RoundId:
        """What tells it from every other round."""
        return (self.term, self.number)

    def has(self, seat: Seat) -> bool:
        """Whether this very start of the node is seated."""
        return any(s.name == seat.name and s.incarnation == seat.incarnation for s in self.seats)


def id_of(round_: Round | None) -> RoundId:
    """The id of a round that may be missing."""
    return NO_ROUND if round_ is None else round_.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a node knows. `serial` grows with each of its messages, so that old ones are seen.

    promised: highest term that it follows.
    last: the last round that it was in; pending: accepted, and no Go yet.
    grounds: the rounds any of which may have been the last one when `pending` was proposed.
    at: the round its workers run in; is_waiting: it asks for the next round; is_done: all of its
        workers of that round have finished well.
    known: highest number of a round, in force or in its way, that it has heard of.
    gone: candidates whose endpoint refuses connections, so that their agents have ended.
    fenced_by: the round that took its memory, while it has come into none since.
    """

    serial: int
    seat: Seat
    promised: int
    last: Round | None
    pending: Round | None
    grounds: tuple[Round, ...]
    at: RoundId
    is_waiting: bool
    known: int
    gone: tuple[int, ...] = ()
    is_done: bool = False
    fenced_by: Round | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The short report: I live, and this is where I am."""

    serial: int
    promised: int
    last: RoundId
    at: RoundId
    is_waiting: bool
    is_done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """The store of a proposed round listens."""

    id: RoundId
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Yes to a proposed round. `sees_fence`: its claim is in the fence folder of this node too."""

    id: RoundId
    sees_fence: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A node goes for good. `is_failure`: its workers failed and it has no attempt left."""

    reason: str
    is_failure: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The job is over for all."""

    reason: str
    is_success: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """What are you doing? From a node that looks for the active coordinator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Answer to Peek; `number` is that of the last round of an active coordinator.

    last_term: the term of the last round that it has heard of, -1 for none.
    """

    is_active: bool
    term: int
    number: int
    last_term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Follow me in this term."""

    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Open the store of this round."""

    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Propose:
    """The next round, if all its seats accept; `grounds` as in Report."""

    round: Round
    grounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """All seats have accepted this round: it is in force, says the coordinator of `term`."""

    term: int
    round: Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """A round ends; come for the next."""

    id: RoundId
    cause: EndCause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """The other half goes on as round `by`; forget your rounds, and come again as a new node."""

    term: int
    by: Round
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The job is over for this node, and for all if its coordinator has ended it.

    is_difference: it never began here, as nodes have other options or files.
    """

    reason: str
    is_success: bool
    is_difference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The coordinator lives; `number` is that of the round in force, 0 for none."""

    term: int
    is_active: bool
    number: int
    num_nodes: int
    waits_for: str = ""


ToCoordinator: TypeAlias = Report | Beat | Hosted | Accept | Leave | Close | Peek
ToMember: TypeAlias = (
    Lead | Host | Propose | Go | Over | Fenced | Closed | Pulse | Status
)  # fmt: skip
Message: TypeAlias = ToCoordinator | ToMember

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (*get_args(ToCoordinator), *get_args(ToMember))
}


def encode(message: Message) -> bytes:
    """One line."""
    document = {"kind": type(message).__name__, **asdict(message)}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line.

    Raises:
        ValueError: it is none.
    """
    document = json.loads(line)
    if not isinstance(document, dict) or document.get("kind") not in _KINDS:
        raise ValueError("the line is no message of the rendezvous")
    kind = _KINDS[document.pop("kind")]
    message: Message = _record(kind, document)
    return message


def _record(kind: type, raw: object) -> Any:  # noqa: ANN401
    if not isinstance(raw, dict):
        raise ValueError(f"{kind.__name__} is no object")
    hints = _hints(kind)
    try:
        return kind(**{key: _value(hints[key], raw[key]) for key in hints.keys() & raw.keys()})
    except TypeError as exc:
        raise ValueError(f"{kind.__name__} lacks a field: {exc}") from exc


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(kind: Any, raw: object) -> object:  # noqa: ANN401 (a type, or a generic alias)
    if get_origin(kind) in (UnionType, Union):
        return None if raw is None else _value(get_args(kind)[0], raw)
    if get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise ValueError("no list where one belongs")
        return tuple(_value(get_args(kind)[0], each) for each in raw)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(str(raw))
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, raw)
    # Not isinstance: True would pass for a number.
    if type(raw) is not kind:
        raise ValueError(f"{raw!r} is no {kind.__name__}")
    return raw
