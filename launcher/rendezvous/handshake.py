"""Who may take part: both sides prove that they know the job's token, which never travels.

coordinator --- challenge(nonce) ---> node
            <-- answer(nonce, mac) --
            --- welcome(mac) ------->       or the connection is closed
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os

NONCE_BYTES = 16


class Stranger(Exception):
    """The other side does not speak our language, or has another token."""


def proof(token: bytes, run_id: str, role: str, *nonces: str) -> str:
    """What only somebody with the token can say for these nonces.

    Args:
        role: of the side that proves; so that a proof cannot be sent back.
    """
    text = "\n".join(("bundlerun rendezvous 1", role, run_id, *nonces))
    return hmac.new(token, text.encode(), "sha256").hexdigest()


async def admit(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes, run_id: str
) -> None:
    """The coordinator's side.

    Raises:
        Stranger: the node does not know the token.
    """
    mine = os.urandom(NONCE_BYTES).hex()
    _send(writer, {"challenge": mine})
    answer = await _read(reader)
    theirs, mac = answer.get("nonce", ""), answer.get("mac", "")
    if not hmac.compare_digest(mac, proof(token, run_id, "node", mine, theirs)):
        _send(writer, {"denied": "another token or another --rdzv-id"})
        raise Stranger("a node with another token or another --rdzv-id")
    _send(writer, {"mac": proof(token, run_id, "coordinator", theirs, mine)})


async def introduce(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes, run_id: str
) -> None:
    """The node's side.

    Raises:
        Stranger: what listens is not our coordinator.
    """
    theirs = (await _read(reader)).get("challenge", "")
    mine = os.urandom(NONCE_BYTES).hex()
    _send(writer, {"nonce": mine, "mac": proof(token, run_id, "node", theirs, mine)})
    answer = await _read(reader)
    if "denied" in answer:
        raise Stranger(f"refuses this node: {answer['denied']}")
    if not hmac.compare_digest(
        answer.get("mac", ""), proof(token, run_id, "coordinator", mine, theirs)
    ):
        raise Stranger("has another token")


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
