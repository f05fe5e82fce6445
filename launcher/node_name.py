"""A name for this node that no other agent of the job on this machine has."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TextIO

from launcher.errors import ConfigError


@contextmanager
def claimed_name(job: str, wanted: str = "", *, folder: Path | None = None) -> Iterator[str]:
    """Gives this agent a node name for as long as it runs.

    Two agents on one machine would else write the same logs. The claim is a lock, which ends with
    the process however that ends.

    Args:
        job: what the agents that must differ have in common.
        wanted: the name; empty takes the machine's name, or that with -2, -3, ... behind.
        folder: where the locks lie; the machine's temporary folder by default.

    Raises:
        ConfigError: another agent has the wanted name.
    """
    where = folder or Path(tempfile.gettempdir())
    host = socket.gethostname()
    names = [wanted] if wanted else chain([host], (f"{host}-{number}" for number in count(2)))
    for name in names:
        lock = _lock(where / f"bundlerun-{os.getuid()}-{_digest(f'{job} {name}')}.lock")
        if lock is not None:
            with lock:
                yield name
            return
    raise ConfigError(
        f"--node-name {wanted!r} is taken by another agent of this job; give each its own"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lock(path: Path) -> TextIO | None:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
