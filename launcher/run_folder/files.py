"""Files that another process may read at any moment."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Files in memory, for the processes of this machine."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that has no hard links: vfat, some that are mounted by SMB or FUSE."""


def name_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else takes, to be renamed to `path`.

    Containers that share a folder may have the same process ids.
    """
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")


def write_text(path: Path, text: str, *, is_lasting: bool = True) -> None:
    """Puts `text` in place whole: a reader, or a crash, meets the old file or the new one.

    Args:
        path: of the file.
        text: of all of it.
        is_lasting: whether it is to outlive a crash of the machine, for which the disk is waited.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file stays.
    """
    write_bytes(path, text.encode(), is_lasting=is_lasting)


def write_bytes(path: Path, data: bytes, *, is_lasting: bool = True) -> None:
    """The same for bytes.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            # Before the rename, or a crash of the machine could leave an empty file in its place.
            if is_lasting:
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def create_text(path: Path, text: str, *, mode: int = 0o666, may_be_met_empty: bool = True) -> bool:
    """Puts `text` in place where there is no file yet: of many that try, one succeeds.

    Args:
        path: in a folder that exists.
        mode: who may read it; the umask takes away from it.
        may_be_met_empty: whether a reader may find the file still empty, on a file system without
            hard links; False makes such a file system an error.

    Returns:
        Whether this one was first.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    beside = name_beside(path)
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _link_new(beside, path, may_be_met_empty)
    except FileExistsError:
        return False
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return True


def _link_new(beside: Path, path: Path, may_be_met_empty: bool) -> None:
    # A link fails where the name is taken, and shows the file whole: of many one wins (I15).
    try:
        os.link(beside, path)
        return
    except OSError as exc:
        if not may_be_met_empty or exc.errno not in _NO_LINKS:
            raise
    # Without links: one still wins, but the text comes after the file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, beside.stat().st_mode & 0o777), "wb") as file:
        file.write(beside.read_bytes())


def is_absent(path: Path) -> bool:
    """Whether there is surely nothing at `path`; a folder that does not answer is no proof."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
