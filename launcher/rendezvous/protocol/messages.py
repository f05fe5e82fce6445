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

One message is one line of JSON; how rounds go over a connection is in `wire`. Nothing is unpickled,
and every field is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache, cached_property
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from bundlerun.launcher.ranks.cause import EndCause

MAX_LINE_BYTES = 4 << 20
"""Longest line either side reads: a packed round of some 100,000 nodes."""

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


@dataclass(frozen=True, kw_only=True)
class Round:
    """Who trains together: the seats in node order, and the store that the first of them keeps.

    `is_fenced`: every seat sees the fence folder, so that the folder decides who goes on after it.
    `before`: the round whose workers go on in this one, in their processes; else empty.
    """

    # Without slots: what is worked out once is kept beside the fields, and is no part of them.

    term: int
    number: int
    seats: tuple[Seat, ...]
    store_port: int = 0
    is_fenced: bool = False
    before: RoundId = ()

    @property
    def id(self) -> RoundId:
        """What tells it from every other round."""
        return (self.term, self.number)

    def has(self, seat: Seat) -> bool:
        """Whether this very start of the node is seated."""
        return (seat.name, seat.incarnation) in self._starts

    @cached_property
    def _starts(self) -> frozenset[tuple[str, str]]:
        # A coordinator asks for each node at each look: a search through all would be the square.
        return frozenset((seat.name, seat.incarnation) for seat in self.seats)

    @cached_property
    def text(self) -> bytes:
        """All of it, the same for equal rounds."""
        return json.dumps(plain(self), separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """What tells it from every round that differs in anything."""
        return hashlib.sha256(self.text).hexdigest()[:32]


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
    is_moving: its workers are still on their way into the round `at`, from the one before.
    pause_ms: how long its workers did no steps when they last came from one round into another,
        milliseconds; 0: not known.
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
    is_moving: bool = False
    pause_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The short report: I live, and this is where I am."""

    serial: int
    promised: int
    last: RoundId
    at: RoundId
    is_waiting: bool
    is_done: bool = False
    is_moving: bool = False
    pause_ms: int = 0


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
    knows: digests of rounds that need not be told to it.
    """

    is_active: bool
    term: int
    number: int
    last_term: int
    knows: tuple[str, ...] = ()


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
    """One line, with all that is in it."""
    return json.dumps(plain(message), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line that `encode` made.

    Raises:
        ValueError: it is none.
    """
    return message_of(json.loads(line))


Named = Callable[[object], Round]
"""Finds a round by what stands for it."""


def message_of(document: object, named: Named | None = None) -> Message:
    """The message of what JSON gave.

    Args:
        named: finds rounds; None: they are there as they are.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(document, dict) or document.get("kind") not in _KINDS:
        raise ValueError("the line is no message of the rendezvous")
    kind = _KINDS[document.pop("kind")]
    message: Message = record(kind, document, named)
    return message


def plain(value: object, name: Callable[[Round], object] | None = None) -> Any:  # noqa: ANN401
    """A message or a part of one as JSON takes it, the kind of a message first.

    Args:
        name: what stands for a round; None: it stands for itself.
    """
    if isinstance(value, (str, int)) or value is None:  # most values; bool is an int
        return value
    if isinstance(value, tuple):
        return [plain(each, name) for each in value]
    if isinstance(value, Round) and name is not None:
        return name(value)
    kind: Any = type(value)
    head = {"kind": kind.__name__} if kind.__name__ in _KINDS else {}
    return head | {key: plain(getattr(value, key), name) for key in _names(kind)}


def rounds_in(message: Message) -> Iterator[Round]:
    """Yields the rounds that a message has."""
    kind: Any = type(message)
    for key in _names(kind):
        value = getattr(message, key)
        if isinstance(value, Round):
            yield value
        elif isinstance(value, tuple):
            yield from (each for each in value if isinstance(each, Round))


def record(kind: type, raw: object, named: Named | None = None) -> Any:  # noqa: ANN401
    """A dataclass of a message from what JSON gave.

    Raises:
        ValueError: a field is missing or of another kind.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{kind.__name__} is no object")
    values = {key: read(raw[key], named) for key, read in _readers(kind) if key in raw}
    try:
        return kind(**values)
    except TypeError as exc:
        raise ValueError(f"{kind.__name__} lacks a field: {exc}") from exc


@cache
def _names(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 (mypy takes no type for hashable)
    return tuple(field.name for field in fields(kind))


_Read = Callable[[object, "Named | None"], object]
"""Checks and converts a value; made once for each kind, as thousands are read in a second."""


@cache
def _readers(kind: Any) -> tuple[tuple[str, _Read], ...]:  # noqa: ANN401 (as above)
    hints = get_type_hints(kind)
    return tuple((name, _reader(hints[name])) for name in _names(kind))


def _reader(kind: Any) -> _Read:  # noqa: ANN401 (a type, or a generic alias)
    if get_origin(kind) in (UnionType, Union):
        inner = _reader(get_args(kind)[0])
        return lambda raw, named: None if raw is None else inner(raw, named)
    if get_origin(kind) is tuple:
        return _tuple_reader(_reader(get_args(kind)[0]))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda raw, named: kind(str(raw))
    if kind is Round:
        return lambda raw, named: record(Round, raw) if named is None else named(raw)
    if isinstance(kind, type) and is_dataclass(kind):
        return lambda raw, named: record(kind, raw, named)

    def read(raw: object, named: Named | None) -> object:
        # Not isinstance: True would pass for a number.
        if type(raw) is not kind:
            raise ValueError(f"{raw!r} is no {kind.__name__}")
        return raw

    return read


def _tuple_reader(inner: _Read) -> _Read:
    def read(raw: object, named: Named | None) -> object:
        if not isinstance(raw, list):
            raise ValueError("no list where one belongs")
        return tuple([inner(each, named) for each in raw])

    return read
