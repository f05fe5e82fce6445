"""The files in a .tar, found by their headers: what is between two headers is not read.

    | header a | data of a ... | header b | data of b ... | zeros |
      ^ read     ^ its beginning ^ read                     ^ the end

The tarfile of the standard library takes three times as long, and a set of a million images has
two million files.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
_FILES = b"0\x007"
"""Types of a file: of today, of old, and contiguous."""
_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"
_EMPTY = b"123456"
"""Links, devices and folders, which have no data whatever their size says."""
_NUL = b"\0"
_SPACES = b" " * 8
_ADLER = 65521


class DamagedTar(ValueError):
    """A file is no .tar, or not a whole one; says in what way."""


class Member(NamedTuple):
    """A file in a .tar."""

    name: str
    offset: int
    """Of its data, bytes."""
    size: int
    """Of its data, bytes."""
    begin: bytes
    """Up to so many bytes of its data as are read with the header."""


def members(path: Path) -> Iterator[Member]:
    """The files in a .tar, in order; folders and links are left out.

    Raises:
        DamagedTar: while iterating.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError, AttributeError):  # a file system may not know of it
            # Else the kernel reads ahead, and with it all the data.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield from _members(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def name_at(descriptor: int, offset: int) -> str:
    """The name in the header before the data at `offset`; of a long name, its beginning."""
    return _name(os.pread(descriptor, BLOCK, offset - BLOCK))


def _members(descriptor: int, end: int) -> Iterator[Member]:
    if not end:
        raise DamagedTar("it is empty")
    at, long_name, pax_size = 0, "", -1
    while True:
        # The beginning of the data with it: a label is there, and needs no second read.
        read = os.pread(descriptor, 2 * BLOCK, at)
        header = read[:BLOCK]
        if len(header) < BLOCK:
            raise DamagedTar(
                f"it ends at byte {end} without the zeros that a whole .tar ends with: it was cut "
                "off"
            )
        if not header.strip(_NUL):
            return
        _check(header, at)
        kind, size, data = header[156:157], _number(header[124:136], at), at + BLOCK
        if kind in (_LONG_NAME, _PAX):
            text = os.pread(descriptor, size, data)
            if kind == _LONG_NAME:
                long_name = _text(text.split(_NUL, 1)[0])
            else:
                long_name, pax_size = _pax(text, long_name, at)
            at = data + _blocks(size)
            continue
        size = pax_size if pax_size >= 0 else size
        name = long_name or _name(header)
        long_name, pax_size = "", -1
        if kind == _SPARSE:
            raise DamagedTar(f"{name!r} in it is stored as a sparse file")
        if kind in _EMPTY:
            size = 0
        if data + size > end:
            raise DamagedTar(f"it is cut off inside {name!r}")
        if kind in _FILES:
            yield Member(name, data, size, read[BLOCK : BLOCK + size])
        at = data + _blocks(size)


def _check(header: bytes, at: int) -> None:
    """Raises DamagedTar where the sum in the header is not that of its bytes."""
    # The lower half of this checksum is the sum of the bytes and one, in C; adding takes longer
    # than all the rest.
    total = zlib.adler32(header[:148] + _SPACES + header[156:]) & 0xFFFF
    if total != (_number(header[148:156], at) + 1) % _ADLER:
        raise DamagedTar(
            "it is no .tar" if at == 0 else f"what is at byte {at} is no header: it is damaged"
        )


def _number(field: bytes, at: int) -> int:
    if field[0] & 0x80:  # of large files, in binary
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.split(_NUL, 1)[0].strip() or b"0", 8)
    except ValueError as exc:
        text = "it is no .tar" if at == 0 else f"what is at byte {at} is no header: it is damaged"
        raise DamagedTar(text) from exc


def _name(header: bytes) -> str:
    name = header[:100].split(_NUL, 1)[0]
    prefix = header[345:500].split(_NUL, 1)[0]
    # GNU's own form, "ustar  ", has other things there.
    return _text(prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name)


def _pax(text: bytes, name: str, at: int) -> tuple[str, int]:
    """Name and size of the next file, where lines `LENGTH KEY=VALUE` say them; else `name`, -1."""
    size = -1
    while text.strip(_NUL):
        length = text.split(b" ", 1)[0]
        if not length.isdigit() or not len(length) < int(length) <= len(text):
            raise DamagedTar(f"what is at byte {at} is no header: it is damaged")
        line, text = text[len(length) + 1 : int(length) - 1], text[int(length) :]
        key, _, value = line.partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size" and value.isdigit():
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            raise DamagedTar("a file in it is stored as a sparse file")
    return name, size


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return os.fsdecode(name)
