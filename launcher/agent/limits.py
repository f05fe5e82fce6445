"""Limits of the system that stand in the way of many ranks: raised where that may be, else told."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.run_folder.files import SHARED_MEMORY

ENOUGH_FILES = 65536
"""More open files are not asked for."""
FEW_FILES = 512
"""With fewer a process may run out: sockets to its peers, pipes of loaders, libraries."""
_PAGES_PER_RANK = 8
"""Of semaphores that torch's agent makes for a rank; four, and some to spare."""


def raise_open_files() -> str:
    """Raises the soft limit of open files as far as it may be; what is wrong where that is little.

    Batch systems and service managers often hand on 1024, or less, of many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_to_ask_for(soft, hard)
    if wanted > soft >= 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if 0 <= wanted < FEW_FILES:
        return (
            f"a process may open {wanted} files here, which may be too few; ulimit -n "
            f"{2 * FEW_FILES} before the start, or LimitNOFILE of the service, allows more"
        )
    return ""


def files_to_ask_for(soft: int, hard: int) -> int:
    """The soft limit of open files to have; -1 stands for no limit."""
    if soft < 0 or soft >= ENOUGH_FILES:
        return soft
    return ENOUGH_FILES if hard < 0 else max(soft, min(hard, ENOUGH_FILES))


def check_shared_memory(
    num_ranks: int,
    *,
    folder: Path = SHARED_MEMORY,
    allocate: Callable[[int, int, int], None] = os.posix_fallocate,
) -> None:
    """Raises NodeError where the agent could not make the semaphores of its ranks."""
    num_bytes = num_ranks * _PAGES_PER_RANK * os.sysconf("SC_PAGE_SIZE")
    try:
        # Allocated, not only sized: a sparse file fits anywhere.
        with tempfile.TemporaryFile(dir=folder) as file:
            allocate(file.fileno(), 0, num_bytes)
    except OSError as exc:
        raise NodeError(
            f"no semaphores can be made in {str(folder)!r}: {exc.strerror}; it needs "
            f"{num_bytes >> 10} KB for {num_ranks} ranks: clear it, or give the container more "
            "(docker run --shm-size=1g)"
        ) from exc
