"""Which CPUs other ranks of this user are pinned to, so that no two jobs meet on one of them.

Every job gives its ranks the same CPUs, from the first one on. So a second job on the machine would
be bound to the cores that the first one keeps busy, though others may be free. Therefore a rank
locks its CPUs before it is pinned: a byte each in one file. If one of them is taken, the rank stays
unpinned, and the system finds it a place.

The locks belong to the process: children do not inherit them, and they end with it however it ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path


def claim_cpus(cpus: Sequence[int], *, folder: Path | None = None) -> bool:
    """Whether these CPUs were nobody's and are now this process's.

    A folder where nothing can be locked settles nothing: then they count as free.

    Args:
        folder: where the file with the locks is; the machine's temporary folder by default.
    """
    path = (folder or Path(tempfile.gettempdir())) / f"bundlerun-{os.getuid()}-cpus"
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError:
        return True
    try:  # the descriptor stays open: closing it would give the locks up
        for cpu in cpus:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, cpu)
    except (BlockingIOError, PermissionError):
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
        return False
    except OSError:
        return True
    return True
