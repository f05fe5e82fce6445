"""A name for this node that no other agent of the job on this machine has."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import TextIO

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.ranks.leftovers import is_alive, own_mark

ORPHANS_S = 3.0
"""How long to wait for the claim of a dead agent: processes that it forked may still hold it."""
_POLL_S = 0.02
SWEEP_AFTER_S = 3600.0
"""Age from which the file of a lock is swept; only to save work, as a lock that is held stays."""


@contextmanager
def claimed_name(job: str, wanted: str = "", *, folder: Path | None = None) -> Iterator[str]:
    """Gives this agent a node name for as long as it runs.

    Otherwise two agents on one machine would write the same logs. The claim is a lock, which ends
    with the process however that ends.

    Args:
        job: what the agents that must differ have in common.
        wanted: the name; empty takes the machine's name, or that with -2, -3, ... after it.
        folder: where the locks are; the machine's temporary folder by default.

    Raises:
        ConfigError: another agent has the wanted name.
    """
    where = folder or Path(tempfile.gettempdir())
    _sweep(where)
    host = socket.gethostname()
    names = [wanted] if wanted else chain([host], (f"{host}-{number}" for number in count(2)))
    for name in names:
        path = where / f"bundlerun-{os.getuid()}-{_digest(f'{job} {name}')}.lock"
        lock = _lock(path) or _lock_after_orphans(path)
        if lock is not None:
            # So that another agent can tell a living holder from what a dead one has left.
            lock.write(own_mark())
            lock.flush()
            try:
                yield name
            finally:
                _release(path, lock)
            return
    raise ConfigError(
        f"--node-name {wanted!r} is taken by another agent of this job ({_holder(path)}); give "
        "each its own"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lock(path: Path) -> TextIO | None:
    """The held lock, None where another holds it.

    Releasing a lock removes its file. A process that opened the file before that and locks it
    afterwards holds a file that nobody else will open, so it tries again.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # Still the file that others will open; else its holder removed it before we locked it.
        if _is_at(path, file):
            # The mark of the holder before must not pass for ours.
            file.truncate(0)
            return file
        file.close()


def _lock_after_orphans(path: Path) -> TextIO | None:
    """The lock of an agent that was killed a moment ago, once all that it had forked has ended.

    Otherwise a node that is killed whole and started again at once would get another name.
    """
    deadline = time.monotonic() + ORPHANS_S
    # A living agent keeps its name: no wait for that.
    while not is_alive(_read(path)) and time.monotonic() < deadline:
        lock = _lock(path)
        if lock is not None:
            return lock
        time.sleep(_POLL_S)
    return None


def _read(path: Path) -> str:
    """The mark of who holds a lock; empty where it is just being taken."""
    with suppress(OSError, UnicodeError):
        return path.read_text(encoding="ascii")
    return ""


def _holder(path: Path) -> str:
    mark = _read(path)
    if is_alive(mark):
        return f"process {mark.rpartition('-')[2]}"
    return f"what its dead agent left still runs after {ORPHANS_S:g} s"


def _is_at(path: Path, file: TextIO) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def _release(path: Path, file: TextIO) -> None:
    """Takes the file away while it is still locked, then lets go."""
    with file, suppress(OSError):
        path.unlink()


def _sweep(folder: Path) -> None:
    """Removes what killed agents have left: old files that nobody holds."""
    for path in folder.glob(f"bundlerun-{os.getuid()}-*.lock"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < SWEEP_AFTER_S:
                continue
            file = _lock(path)
            if file is not None:
                _release(path, file)
