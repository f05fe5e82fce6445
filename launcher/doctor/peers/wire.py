"""A connection between two nodes that are examined together: proven first, then lines of JSON.

accepting   [1] --- challenge(nonce) -----> connecting
            [2] <-- answer(nonce, mac) ----
            [3] --- welcome(mac) ---------->      or the connection is closed

The secret never travels; it is proven as at the rendezvous (`launcher.rendezvous.handshake`).
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from bundlerun.launcher.rendezvous.handshake import NONCE_BYTES, proof

MAX_LINE_BYTES = 1 << 20
ADMIT_S = 5.0
"""How long a connection may take to prove itself, seconds."""
_JOB = "doctor"
_NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)

Words = Mapping[str, Any]


class Reach(StrEnum):
    """What became of an attempt to reach a node."""

    OK = "reached"
    REFUSED = "refused: nothing listens there"
    DROPPED = "no answer: packets are dropped, or the node is off"
    NO_ROUTE = "no route"
    STRANGER = "another program answers there"
    DENIED = "it knows another secret"
    BROKEN = "the connection broke"


class Unreached(Exception):
    """An attempt failed."""

    def __init__(self, reach: Reach) -> None:
        super().__init__(str(reach))
        self.reach = reach


@dataclass(frozen=True, slots=True)
class Secret:
    """What all nodes that are examined together know."""

    token: bytes

    def proof(self, role: str, *nonces: str) -> str:
        """What only somebody with the secret can say for these nonces.

        Args:
            role: of the side that proves.
        """
        return proof(self.token, _JOB, f"{_JOB} {role}", *nonces)


class Link:
    """One connection; not for several threads at once.

    Every read has a limit. What is not as agreed raises Unreached.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A node that is switched off is noticed after half a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, words: Words, *, limit_s: float = ADMIT_S) -> None:
        """Sends a line."""
        try:
            self.sock.settimeout(limit_s)
            self.sock.sendall(json.dumps(words).encode() + b"\n")
        except OSError as exc:
            raise Unreached(Reach.BROKEN) from exc

    def read(self, limit_s: float) -> dict[str, Any]:
        """The next line, within so many seconds."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_LINE_BYTES:
                raise Unreached(Reach.STRANGER)
            self._rest += self._more(deadline)
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            words = json.loads(line)
        except ValueError as exc:
            raise Unreached(Reach.STRANGER) from exc
        if not isinstance(words, dict):
            raise Unreached(Reach.STRANGER)
        return words

    def _more(self, deadline: float) -> bytes:
        left_s = deadline - time.monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError
            self.sock.settimeout(left_s)
            data = self.sock.recv(65536)
        except TimeoutError as exc:
            raise Unreached(Reach.DROPPED) from exc
        except OSError as exc:
            raise Unreached(Reach.BROKEN) from exc
        if not data:
            raise Unreached(Reach.BROKEN)
        return data

    def close(self) -> None:
        """Ends the connection; a thread that reads from it wakes up."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(address: str, port: int, secret: Secret, *, limit_s: float) -> Link:
    """A connection to a node, proven both ways.

    Raises:
        Unreached: there is none.
    """
    try:
        link = Link(socket.create_connection((address, port), timeout=limit_s))
    except TimeoutError as exc:
        raise Unreached(Reach.DROPPED) from exc
    except ConnectionRefusedError as exc:
        raise Unreached(Reach.REFUSED) from exc
    except OSError as exc:
        raise Unreached(Reach.NO_ROUTE if exc.errno in _NO_ROUTE else Reach.DROPPED) from exc
    try:
        theirs = str(link.read(ADMIT_S).get("doctor", ""))
        if not theirs:
            raise Unreached(Reach.STRANGER)
        mine = os.urandom(NONCE_BYTES).hex()
        link.send({"nonce": mine, "mac": secret.proof("connecting", theirs, mine)})
        answer = link.read(ADMIT_S)
        # A proof for us, too: any program may listen there.
        if not hmac.compare_digest(_mac(answer), secret.proof("accepting", mine, theirs)):
            raise Unreached(Reach.DENIED)
    except Unreached:
        link.close()
        raise
    return link


def admit(sock: socket.socket, secret: Secret) -> Link:
    """The accepting side.

    Raises:
        Unreached: it is nobody of ours.
    """
    link = Link(sock)
    mine = os.urandom(NONCE_BYTES).hex()
    link.send({"doctor": mine})
    answer = link.read(ADMIT_S)
    theirs = str(answer.get("nonce", ""))
    if not hmac.compare_digest(_mac(answer), secret.proof("connecting", mine, theirs)):
        link.send({"denied": True})
        raise Unreached(Reach.DENIED)
    link.send({"mac": secret.proof("accepting", theirs, mine)})
    return link


def _mac(answer: Words) -> str:
    text = str(answer.get("mac", ""))
    return text if text.isascii() else ""
