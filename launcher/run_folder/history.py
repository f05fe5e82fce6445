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
    """The values of a line; none if it is cut short, or is no JSON object."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def rows_of(data: bytes) -> Iterator[Row]:
    """The values of all whole lines."""
    lines = data.splitlines()
    # All in one go takes two thirds of the time of one by one. Lines that a crash has cut short
    # make no list of as many objects, whatever they are.
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        rows = []
    if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
        return filter(None, rows)
    return filter(None, map(row_of, lines))


def read_rows(file: Path) -> list[Row]:
    """All whole lines of a file; none where there is no file.

    Raises:
        OSError: the file cannot be read.
    """
    with suppress(FileNotFoundError):
        return list(rows_of(file.read_bytes()))
    return []


def read_last_rows(file: Path, num_bytes: int) -> list[Row]:
    """The last whole lines of a file; none if it cannot be read.

    Args:
        num_bytes: how much of the end of the file to read.
    """
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - num_bytes))
            return list(rows_of(stream.read()))
    except OSError:
        return []
