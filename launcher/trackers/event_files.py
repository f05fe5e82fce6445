"""Reads the records of files that a crash may have cut short: TensorBoard's, and W&B's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 32 << 10
_FULL, _LAST = 1, 4
"""Kinds of fragments that end a record."""


def events_of(path: Path) -> Iterator[Any]:
    """The whole events of one of TensorBoard's files.

    Source: the TFRecord format: length (8 bytes), its checksum (4), data, its checksum (4).
    """
    from tensorboard.compat.proto.event_pb2 import Event

    data = path.read_bytes()
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + 12 + length + 4
        if end > len(data):
            return
        yield Event.FromString(data[place + 12 : end - 4])
        place = end


def wandb_records(path: Path) -> Iterator[bytes]:
    """The whole records of a `.wandb` file.

    Source: the log format of LevelDB, after a header of 7 bytes: blocks of 32 KiB with fragments
    of checksum (4 bytes), length (2), kind (1), data; a fragment's header never crosses blocks.
    """
    data = path.read_bytes()
    place = 7
    record = b""
    while place + 7 <= len(data):
        left = _BLOCK_BYTES - place % _BLOCK_BYTES
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        end = place + 7 + length
        if kind == 0 or end > len(data):
            return
        record += data[place + 7 : end]
        place = end
        if kind in (_FULL, _LAST):
            yield record
            record = b""
