"""One process at a time tells a tracker: a lock that ends with the process that has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class TrackerLock:
    """Held from the time that `taken` says so, until `release`.

    Args:
        path: of its file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def taken(self) -> bool:
        """Whether this process has it now.

        Raises:
            OSError: the file system has no locks.
        """
        try:
            # Of the kind that works over NFS as well, between nodes.
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self) -> None:
        """Lets others have it."""
        os.close(self._descriptor)
