"""Who may take part: both sides prove that they know the job's token, which never travels.

coordinator [1] --- challenge(nonce) -----------> node
            [2] <-- answer(nonce, mac, who) -----
            [3] --- welcome(mac) --------------->       or the connection is closed

`who` is the node's name and what it must have as the others have it: its options, files, versions.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bundlerun.launcher.rendezvous.refusal import RefusalCause

NONCE_BYTES = 16


class Stranger(Exception):
    """The other side does not speak our language, has another token, or does not fit to us.

    Args:
        text: for a reader.
        cause: for the program.
    """

    def __init__(self, text: str, cause: RefusalCause = RefusalCause.STRANGER) -> None:
        super().__init__(text)
        self.cause = cause


class Differs(Stranger):
    """The coordinator's node has other options, files or versions; the message says which."""

    def __init__(self, text: str) -> None:
        super().__init__(text, RefusalCause.DIFFERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a node says of itself.

    Attributes:
        name: the node's.
        terms: see `launcher.agreement`; empty where it knows none.
    """

    name: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As it travels; ASCII only."""
        return json.dumps([self.name, dict(self.terms)])

    @classmethod
    def of(cls, text: str) -> Card:
        """Reads what `text` wrote.

        Raises:
            Stranger: it did not.
        """
        if not text:
            return cls()
        try:
            name, terms = json.loads(text)
            return cls(name=str(name), terms={str(k): str(v) for k, v in terms.items()})
        except (ValueError, TypeError, AttributeError) as exc:
            raise Stranger("a node that does not say who it is") from exc


def proof(token: bytes, run_id: str, role: str, *nonces: str) -> str:
    """What only somebody with the token can say for these nonces.

    Args:
        role: of the side that proves; so that a proof cannot be sent back.
    """
    text = "\n".join(("bundlerun rendezvous 1", role, run_id, *nonces))
    return hmac.new(token, text.encode(), "sha256").hexdigest()


async def admit(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    token: bytes,
    run_id: str,
    objection_to: Callable[[Card], str] = lambda card: "",
) -> None:
    """The coordinator's side.

    Args:
        objection_to: why a node with this card cannot take part; empty where it can.

    Raises:
        Stranger: the node does not know the token.
        Differs: there is an objection.
    """
    # [1] New for each connection, so that a recorded answer is worth nothing.
    mine = os.urandom(NONCE_BYTES).hex()
    _send(writer, {"challenge": mine})
    answer = await _read(reader)
    theirs, mac, who = (answer.get(key, "") for key in ("nonce", "mac", "who"))
    proven = (mine, theirs, who) if who else (mine, theirs)  # who only asks says nothing of itself
    # [2] The card counts only after this: it is covered by the proof.
    if not hmac.compare_digest(mac, proof(token, run_id, "node", *proven)):
        _send(writer, {"denied": "another token or another --rdzv-id"})
        raise Stranger("a node with another token or another --rdzv-id", RefusalCause.TOKEN)
    objection = objection_to(Card.of(who))
    if objection:
        _send(writer, {"differs": json.dumps(objection)})  # ASCII, whatever it says
        raise Differs(objection)
    # [3] A proof for the node: any program may listen at an endpoint.
    _send(writer, {"mac": proof(token, run_id, "coordinator", theirs, mine)})


async def introduce(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    token: bytes,
    run_id: str,
    card: Card,
) -> None:
    """The node's side.

    Raises:
        Stranger: what listens is not our coordinator.
        Differs: it is, and this node cannot take part as it is.
    """
    theirs = (await _read(reader)).get("challenge", "")
    # The node's number makes the coordinator's proof in [3] new, too.
    mine, who = os.urandom(NONCE_BYTES).hex(), card.text
    mac = proof(token, run_id, "node", theirs, mine, who)
    _send(writer, {"nonce": mine, "mac": mac, "who": who})
    answer = await _read(reader)
    if "denied" in answer:
        raise Stranger(f"refuses this node: {answer['denied']}", RefusalCause.TOKEN)
    if "differs" in answer:
        raise Differs(str(json.loads(answer["differs"])))
    if not hmac.compare_digest(
        answer.get("mac", ""), proof(token, run_id, "coordinator", mine, theirs)
    ):
        raise Stranger("has another token", RefusalCause.TOKEN)


def _send(writer: asyncio.StreamWriter, words: dict[str, str]) -> None:
    writer.write(json.dumps(words).encode() + b"\n")


async def _read(reader: asyncio.StreamReader) -> dict[str, str]:
    try:
        words = json.loads(await reader.readline())
    except ValueError as exc:  # no JSON, no text, or no end of the line
        raise Stranger("is no rendezvous of bundlerun") from exc
    if not isinstance(words, dict) or not all(
        isinstance(v, str) and v.isascii() for v in words.values()
    ):
        raise Stranger("is no rendezvous of bundlerun")
    return words
