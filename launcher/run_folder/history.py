"""JSON Lines of a run: another process may be writing them, or a crash has cut one short."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]


def row_of(line: bytes) -> Row:
    """What a line says; nothing where it is cut short, or is no JSON object."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def rows_of(data: bytes) -> Iterator[Row]:
    """The lines that say something."""
    return filter(None, map(row_of, data.splitlines()))


def read_rows(file: Path) -> list[Row]:
    """All lines of a file that say something; none where there is no file.

    Raises:
        OSError: the file cannot be read.
    """
    with suppress(FileNotFoundError):
        return list(rows_of(file.read_bytes()))
    return []


def read_last_rows(file: Path, num_bytes: int) -> list[Row]:
    """The lines that say something and end the file; none where it cannot be read.

    Args:
        num_bytes: how much of its end is looked at.
    """
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - num_bytes))
            return list(rows_of(stream.read()))
    except OSError:
        return []
