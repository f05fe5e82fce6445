"""Files that another process may read at any moment."""

from __future__ import annotations

import os
from pathlib import Path


def name_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else takes, to be renamed to `path`.

    Containers that share a folder may have the same process ids.
    """
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")


def write_text(path: Path, text: str) -> None:
    """Puts `text` in place whole: a reader, or a crash, meets the old file or the new one.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def is_absent(path: Path) -> bool:
    """Whether there is surely nothing at `path`; a folder that does not answer is no proof."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
