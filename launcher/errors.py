"""The errors a user can act on, and the exit codes they end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_NODE = 3
EXIT_RESUMABLE = 75


class BundleError(Exception):
    """A failure that a message explains; anything else that escapes is our bug."""

    exit_code = EXIT_FAILED


class ConfigError(BundleError):
    """The input can be fixed: an option, a file, a name."""

    exit_code = EXIT_CONFIG


class NodeError(BundleError):
    """The machine can be fixed: a device, a port, a disk, a version."""

    exit_code = EXIT_NODE


class CheckpointError(BundleError):
    """A checkpoint cannot be used."""


def nearest(name: str, valid: Iterable[str], *, limit: int = 5) -> str:
    """Says which valid names come closest to `name`, or the first few where none is close."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(close)
    shown = ", ".join(names[:limit])
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return f"valid: {shown}{more}" if names else "there is none"
