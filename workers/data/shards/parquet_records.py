"""The images of parquet files as the package datasets writes them, read by groups of rows.

    image      {bytes, path}, or bytes         label      a whole number

A group is decoded whole for any of its rows. So images are shuffled among the groups of a window,
and as many groups are kept.
"""

from __future__ import annotations

import bisect
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.shards.tables import Table

WINDOW_BYTES = 256 << 20
"""Of a window, unless the user says how many images it has."""
RUN = 16
"""With 1, every process of a job would need every group; so about 10 need one of 100 rows."""
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "cls")
_RIGHT = "a column `image` with the bytes of a file and a column `label` with whole numbers"


class _Group(NamedTuple):
    """A group of rows of a file."""

    file: int
    number: int


class ParquetRecords:
    """The images of shards, in order.

    Args:
        shards: in order.
        window: images that are shuffled together; 0: all; -1: `WINDOW_BYTES` of them.

    Raises:
        ConfigError: a shard cannot be read, or has no such columns or values.
    """

    run = RUN

    def __init__(self, shards: Sequence[Path], window: int) -> None:
        self._shards = shards
        self._groups: list[_Group] = []
        self._tables: dict[int, tuple[int, Table]] = {}
        blocks: list[int] = []
        self._columns: list[tuple[str, bool]] = []
        self._sizes: list[int] = []
        labels = []
        self.names: list[str] = []
        """Of the classes, where the files say them."""
        for file, path in enumerate(shards):
            table = Table(path)
            image, is_struct, label = _columns_of(table)
            self._columns.append((image, is_struct))
            labels.append(_labels_of(table, label))
            _refuse_bare(table, f"{image}.bytes" if is_struct else image)
            self.names = self.names or table.class_names(label)
            if table.class_names(label) not in ([], self.names):
                raise ConfigError(
                    f"the shard {str(path)!r} has other names of classes than "
                    f"{str(shards[0])!r}; give all the same, in one order"
                )
            for number, (rows, size) in enumerate(table.groups):
                if rows:
                    self._groups.append(_Group(file, number))
                    blocks.append(rows)
                    self._sizes.append(size)
            table.close()
        self.blocks: Sequence[int] = blocks
        self.labels = np.concatenate(labels)
        count, num_bytes = len(self.labels), sum(self._sizes)
        # As a number of images, so that it is the same wherever the files are.
        self.window = window if window >= 0 else max(1, WINDOW_BYTES * count // max(1, num_bytes))
        self._ends = list(accumulate(self.blocks))
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._most_kept = min(len(self.blocks), _groups_of(self.blocks, self.window or count) + 1)

    def remarks(self) -> list[str]:
        """What is told of groups that are too large for what is done with them."""
        most = max(self._sizes)
        if most <= WINDOW_BYTES:
            return []
        return [
            f"a group of rows in the shards takes {most / 1e6:.0f} MB, and each loading process "
            "decodes and keeps whole groups; write the files with smaller ones, such as "
            "row_group_size=100"
        ]

    def read(self, index: int, /) -> bytes:
        """The file of an image."""
        group, row = self._find(index)
        found = self._rows(group)[row].as_py()
        if not found:
            raise ValueError("there are no bytes of it")
        return bytes(found)

    def place(self, index: int, /) -> str:
        """Where it is, for messages."""
        group, row = self._find(index)
        file, number = self._groups[group]
        return f"in row {row} of group {number} of the shard {str(self._shards[file])!r}"

    def digest(self) -> str:
        """Of the names of the shards, of the sizes of their groups, and of all classes."""
        total = hashlib.sha256(f"{self.window} {self.blocks} {self._sizes}".encode())
        for path in self._shards:
            total.update(os.fsencode(path.name) + b"\0")
        total.update(self.labels.astype("<i8").tobytes())
        return total.hexdigest()[:12]

    def _find(self, index: int) -> tuple[int, int]:
        group = bisect.bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _rows(self, group: int) -> Any:  # noqa: ANN401 (pyarrow has no types)
        """The images of a group of rows."""
        found = self._kept.pop(group, None)
        if found is None:
            while len(self._kept) >= self._most_kept:
                self._kept.popitem(last=False)
            file, number = self._groups[group]
            image, is_struct = self._columns[file]
            try:
                found = self._table(file).read_group(number, image)
            except ConfigError as exc:
                raise ValueError(str(exc)) from exc
            if is_struct:
                found = found.field("bytes")
        self._kept[group] = found
        return found

    def _table(self, file: int) -> Table:
        """An open file of this process: two that share one would move each other's place."""
        pid, table = self._tables.get(file, (0, None))
        if table is None or pid != os.getpid():
            table = Table(self._shards[file])
            # One at a time: a window has consecutive groups, most of them of one file.
            self._tables = {file: (os.getpid(), table)}
        return table


def _groups_of(blocks: Sequence[int], window: int) -> int:
    """The most groups that a window has, whichever they are."""
    total = 0
    for number, rows in enumerate(sorted(blocks), 1):
        total += rows
        if total >= window:
            return number
    return len(blocks)


def _columns_of(table: Table) -> tuple[str, bool, str]:
    """The column of the images, whether it is a struct, and that of the labels.

    Raises:
        ConfigError: there are no such columns.
    """
    said = table.features
    images = [name for name, of in said.items() if of.get("_type") == "Image"]
    classes = [name for name, of in said.items() if of.get("_type") == "ClassLabel"]
    names = table.schema.names
    image = next((name for name in (*_IMAGES, *images) if name in names), None)
    label = next((name for name in (*_LABELS, *classes) if name in names), None)
    if image is None or label is None:
        what = "images" if image is None else "classes"
        raise ConfigError(
            f"the shard {str(table.path)!r} has no column of {what}, only "
            f"{', '.join(map(repr, names))}; give it {_RIGHT}"
        )
    kind = table.schema.field(image).type
    parts = [kind.field(n).name for n in range(kind.num_fields)]
    is_struct = "bytes" in parts
    holds = kind.field(parts.index("bytes")).type if is_struct else kind
    if "binary" not in str(holds):
        raise ConfigError(
            f"the column {image!r} of the shard {str(table.path)!r} is of type {kind}, and not the "
            f"bytes of files of images; give it {_RIGHT}"
        )
    return image, is_struct, label


def _refuse_bare(table: Table, path: str) -> None:
    """Raises ConfigError where images are files elsewhere, as far as the file says it."""
    bare = table.num_nulls(path)
    if bare:
        raise ConfigError(
            f"{bare} of {table.num_rows} images of the shard {str(table.path)!r} have no bytes in "
            f"it, perhaps only paths of files, as to_parquet() of datasets leaves them; give it "
            f"{_RIGHT}"
        )


def _labels_of(table: Table, column: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    (values,) = table.read([column])
    for row, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(
                f"row {row} of the shard {str(table.path)!r} has {value!r} as {column!r}, and not "
                "a whole number, the class of its image"
            )
    return np.array(values, dtype=np.int64)
