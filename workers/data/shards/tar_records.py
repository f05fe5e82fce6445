"""The images of .tar files, each by one read at the place that the index has."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from bundlerun.workers.data.shards.tar_index import open_indexes
from bundlerun.workers.data.shards.tar_members import name_at

_MOST_OPEN = 64
"""Shards; a process may have 1024 files, and most of them are not data."""


class TarRecords:
    """The images of shards, in order.

    Args:
        shards: in order.
        kept_in: where indexes are kept for the next start; None: nowhere.

    Raises:
        ConfigError: a shard is damaged or cannot be read, or a sample lacks its image or class.
    """

    window = 0
    """A disk finds any image as quickly: they are shuffled like files in folders."""

    run = 1

    def __init__(self, shards: Sequence[Path], kept_in: Path | None) -> None:
        self._shards = shards
        self._indexes = open_indexes(shards, kept_in)
        self.blocks: Sequence[int] = [index.shape[1] for index in self._indexes]
        self.labels = np.concatenate([index[2] for index in self._indexes])
        self._ends = list(accumulate(self.blocks))
        self._open: OrderedDict[int, int] = OrderedDict()

    def remarks(self) -> list[str]:
        """None."""
        return []

    def read(self, index: int, /) -> bytes:
        """The file of an image."""
        shard, offset, size = self._find(index)
        data = os.pread(self._descriptor(shard), size, offset)
        if len(data) < size:
            raise ValueError("its shard has become shorter")
        return data

    def place(self, index: int, /) -> str:
        """Where it is, for messages."""
        shard, offset, _ = self._find(index)
        try:
            name = name_at(self._descriptor(shard), offset)
        except OSError:
            name = f"at byte {offset}"
        return f"{name!r} of the shard {str(self._shards[shard])!r}"

    def digest(self) -> str:
        """Of the names of the shards, and of all places, sizes and classes in them."""
        total = hashlib.sha256()
        for path, index in zip(self._shards, self._indexes, strict=True):
            total.update(os.fsencode(path.name) + b"\0" + index.astype("<i8").tobytes())
        return total.hexdigest()[:12]

    def _find(self, index: int) -> tuple[int, int, int]:
        """Number of the shard, beginning and size of the image."""
        shard = bisect.bisect_right(self._ends, index)
        number = index - (self._ends[shard - 1] if shard else 0)
        offset, size, _ = self._indexes[shard][:, number]
        return shard, int(offset), int(size)

    def _descriptor(self, shard: int) -> int:
        found = self._open.pop(shard, None)
        if found is None:
            # Processes that are forked later may share it: reads say their place themselves.
            found = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) >= _MOST_OPEN:
                _, oldest = self._open.popitem(last=False)
                os.close(oldest)
        self._open[shard] = found
        return found
