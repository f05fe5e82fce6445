"""How messages look on one connection: a round goes over it once, then only its digest does.

A round has a seat for each node, and each node hears of it: as it stands that is the square of
their number. So the first round of a connection is packed, a later one says what it has of one that
the other side knows, and whatever has gone over, either way, is named from then on.

    --> {"kind":"Round","key":"9f..","packed":"eJ.."}        all seats, some 20 bytes each
    --> {"kind":"Propose","round":{"key":"9f.."},...}
    <-- {"kind":"Report","last":{"key":"9f.."},...}
    --> {"kind":"Round","key":"c4..","base":"9f..","seats":[[0,17],[18,99]],...}     seat 17 is gone

Who does not know what is named ends the connection; the next one begins with full rounds again.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from bundlerun.launcher.rendezvous.protocol.messages import (
    MAX_LINE_BYTES,
    Message,
    Round,
    Seat,
    message_of,
    plain,
    record,
    rounds_in,
)

MAX_ROUND_BYTES = 16 * MAX_LINE_BYTES
"""Longest round that is unpacked: some 400,000 nodes."""
K = TypeVar("K")
V = TypeVar("V")
_KEPT = 16
"""Rounds that a process remembers."""
_NAMED = 4
"""Of those that the other side has got last, which it surely remembers."""


class Book:
    """The last rounds that this process has met, by digest; all of its connections share it."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[str, Round] = OrderedDict()
        self._lines: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    @property
    def keys(self) -> tuple[str, ...]:
        """Of those that others may name, the latest last."""
        return tuple(self._rounds)[-_NAMED:]

    def find(self, key: str) -> Round | None:
        """The round of a digest, if it is remembered."""
        return self._rounds.get(key)

    def add(self, round_: Round) -> str:
        """Remembers a round; its digest."""
        key = round_.digest
        self._rounds[key] = self._rounds.pop(key, round_)
        _forget(self._rounds)
        return key

    def line(self, round_: Round, base: str) -> bytes:
        """What tells of a round.

        Args:
            base: digest of one that the other side knows; empty: it knows none.
        """
        key = round_.digest
        made = self._lines.get((key, base))
        if made is None:
            known = self.find(base) if base else None
            made = _full_line(round_)
            if known is not None:
                # Where nearly all seats are new, the packed ones are shorter.
                made = min(made, _later_line(round_, known, base), key=len)
            # For all connections that are told of it now.
            self._lines[key, base] = made
            _forget(self._lines)
        return made

    def read(self, document: dict[str, object]) -> str:
        """Takes in what `line` has made; its digest.

        Raises:
            ValueError: it is none, or is built on a round that is not known here.
        """
        key = document.get("key")
        if not isinstance(key, str):
            raise ValueError("a round without its digest")
        # Of many connections, all but the first bring what is there.
        if key in self._rounds:
            return self.add(self._rounds[key])
        round_ = _unpacked(document) if "packed" in document else self._built(document)
        if self.add(round_) != key:
            raise ValueError("a round is not what its digest says")
        return key

    def _built(self, document: dict[str, object]) -> Round:
        base = self.find(str(document.get("base")))
        parts = document.get("seats")
        if base is None or not isinstance(parts, list):
            raise ValueError("a round that is built on none that is known here")
        seats: list[Seat] = []
        for part in parts:
            if isinstance(part, dict):
                seats.append(record(Seat, part))
                continue
            if not isinstance(part, list) or [type(each) for each in part] != [int, int]:
                raise ValueError("a round with a part that is none")
            begin, end = part
            if not 0 <= begin < end <= len(base.seats):
                raise ValueError("a round has seats that its base does not have")
            seats += base.seats[begin:end]
        made: Round = record(Round, {**document, "seats": []})
        return Round(
            term=made.term,
            number=made.number,
            seats=tuple(seats),
            store_port=made.store_port,
            is_fenced=made.is_fenced,
            before=made.before,
        )


class Wire:
    """One connection.

    Args:
        book: of this process.
    """

    def __init__(self, book: Book) -> None:
        self._book = book
        self._known: OrderedDict[str, None] = OrderedDict()
        """Digests of rounds that the other side has, the latest last."""

    def expect(self, keys: Iterable[str]) -> None:
        """The other side says that it has these."""
        for key in keys:
            self._know(key)

    def encode(self, message: Message) -> bytes:
        """The lines of a message: rounds that are new here, then itself."""
        lines = []
        for round_ in rounds_in(message):
            key = self._book.add(round_)
            if key not in self._known:
                base = next((each for each in reversed(self._known) if self._book.find(each)), "")
                lines.append(self._book.line(round_, base))
            self._know(key)
        lines.append(_line(plain(message, lambda round_: {"key": round_.digest})))
        return b"".join(lines)

    def decode(self, line: bytes) -> Message | None:
        """The message of a line; None where it only tells of a round.

        Raises:
            ValueError: it is neither, or names a round that nobody has told of.
        """
        document = json.loads(line)
        if isinstance(document, dict) and document.get("kind") == Round.__name__:
            self._know(self._book.read(document))
            return None
        return message_of(document, self._named)

    def _named(self, raw: object) -> Round:
        key = raw.get("key") if isinstance(raw, dict) else None
        round_ = self._book.find(key) if isinstance(key, str) else None
        if round_ is None:
            raise ValueError("a round that nobody has told of here")
        return round_

    def _know(self, key: str) -> None:
        self._known.pop(key, None)
        self._known[key] = None
        while len(self._known) > _NAMED:
            self._known.popitem(last=False)


def _forget(kept: OrderedDict[K, V]) -> None:
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def _line(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _full_line(round_: Round) -> bytes:
    packed = base64.b64encode(zlib.compress(round_.text)).decode()
    return _line({"kind": Round.__name__, "key": round_.digest, "packed": packed})


def _unpacked(document: dict[str, object]) -> Round:
    try:
        packed = base64.b64decode(str(document["packed"]), validate=True)
        stream = zlib.decompressobj()
        text = stream.decompress(packed, MAX_ROUND_BYTES)
    except (binascii.Error, zlib.error) as exc:
        raise ValueError("a round that cannot be unpacked") from exc
    if not stream.eof:
        raise ValueError(f"a round of more than {MAX_ROUND_BYTES} bytes, or a part of one")
    round_: Round = record(Round, json.loads(text))
    return round_


def _later_line(round_: Round, base: Round, base_key: str) -> bytes:
    """As what it has of `base`; seats follow each other as they did there, mostly."""
    head = {"term": round_.term, "number": round_.number, "store_port": round_.store_port}
    return _line(
        {
            "kind": Round.__name__,
            "key": round_.digest,
            "base": base_key,
            **head,
            "is_fenced": round_.is_fenced,
            "before": list(round_.before),
            "seats": _parts(round_.seats, base.seats),
        }
    )


def _parts(seats: Sequence[Seat], known: Sequence[Seat]) -> list[object]:
    """Seats as runs of `known`, [first, one after the last], and those that are not in it."""
    place = {seat: index for index, seat in enumerate(known)}
    parts: list[object] = []
    begin = end = -1
    for seat in seats:
        at = place.get(seat, -1)
        if at >= 0 and at == end:
            end += 1
            continue
        if end > begin:
            parts.append([begin, end])
        begin, end = (at, at + 1) if at >= 0 else (-1, -1)
        if at < 0:
            parts.append(plain(seat))
    if end > begin:
        parts.append([begin, end])
    return parts
