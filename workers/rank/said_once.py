"""What all ranks of a node would say alike, such as why they cannot train, is said by one of them.

the first     makes a file beside torch's error files, named by the text; says it; writes so
the others    wait for that, as their ends would have the agent end the first; then say nothing
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bundlerun.launcher.agent.entry import ERROR_FILE

_SAID = b"said"
_WAIT_S = 2.0
"""Longest wait for the other one to have said it, seconds."""
_POLL_S = 0.005


@contextmanager
def said_once(text: str, environ: Mapping[str, str]) -> Iterator[bool]:
    """Whether this process is to say `text`, inside.

    Args:
        text: the same on all ranks that would say it.
        environ: of this rank; without a folder of torch's agent each says what it has to.
    """
    where = _place(text, environ)
    if where is None:
        yield True
        return
    try:
        file = os.open(where, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        yield not _is_said(where)
        return
    except OSError:  # a full disk
        yield True
        return
    try:
        yield True
        os.write(file, _SAID)
    finally:
        os.close(file)


def _place(text: str, environ: Mapping[str, str]) -> Path | None:
    """A file of this node's ranks in this attempt; None where their agent gives them no folder."""
    error_file = Path(environ.get(ERROR_FILE, ""))
    if len(error_file.parts) < 3:
        return None
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return error_file.parent.parent / f"said-{name}"


def _is_said(where: Path) -> bool:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        try:
            if where.stat().st_size:
                return True
        except OSError:
            return False
        time.sleep(_POLL_S)
    return False
