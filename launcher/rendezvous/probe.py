"""Tells a coordinator of ours from whatever else may listen at an endpoint."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

GREETING_BYTES = 4096


def is_rendezvous(address: str, port: int, *, wait_s: float = 2.0) -> bool:
    """Whether a coordinator, of whatever job, greets within `wait_s` seconds."""
    with (
        suppress(OSError, ValueError),
        socket.create_connection((address, port), timeout=wait_s) as link,
        link.makefile("rb") as file,
    ):
        return "challenge" in json.loads(file.readline(GREETING_BYTES))
    return False
