"""The file of one piece: in memory, whole or worth nothing, whatever moment its writer died at.

    0      seal     magic, lengths, checksum of the data and of the text, checksum of itself
    64     text     label and layout, JSON
    text's end, rounded up to a page
           data     the tensors

The seal is blank while the rest is written, and comes last. A file without a right seal, too
short, or whose text or data do not match their checksums, is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.layout.rounding import rounded_up
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.checksum import CHECKSUM_BYTES, checksum, copy_with_checksum
from bundlerun.workers.snapshot.piece import Label, Layout, Spec
from bundlerun.workers.values.flat import Bytes

_MAGIC = b"bundle-1"
_SEAL = struct.Struct(f"<8sQQQ{CHECKSUM_BYTES}s{CHECKSUM_BYTES}s{CHECKSUM_BYTES}s")
_TEXT_BEGIN = 64
_LABEL_BYTES = 16 << 10
"""Room for the label, which differs from step to step: it has the step's result."""


@dataclass(frozen=True, slots=True)
class Found:
    """A piece that was read, its checksums right."""

    path: Path
    label: Label
    layout: Layout
    data: Tensor

    def tensor(self, name: str) -> Tensor:
        """One of its tensors, a view."""
        return self.layout.view(self.data, name)


class Slot:
    """A file to write pieces of one layout into, one after the other.

    Args:
        path: of the file; replaced where it is there.
        layout: of every piece.

    Raises:
        OSError: there is no room. All memory is taken here: later it would end the process.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._tables = json.dumps({name: [*spec] for name, spec in layout.specs.items()})
        # The label grows and shrinks with the metrics in it; the data must not move for that.
        self._most_text = len(self._tables) + _LABEL_BYTES
        self._data_begin = _page_end(_TEXT_BEGIN + self._most_text)
        size = self._data_begin + max(layout.num_bytes, 8)
        # A reader may still map the old file: it keeps its bytes, this is another file.
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            # A sparse file would be granted, and SIGBUS end the process at the first page too many.
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        whole = np.frombuffer(self._memory, dtype=np.uint8)
        self.bytes: Bytes = whole[self._data_begin : self._data_begin + layout.num_bytes]
        self.data = torch.from_numpy(self.bytes)
        """The memory of the tensors."""
        self.views = [layout.view(self.data, name) for name in layout.specs]
        """Of each tensor of the layout, in its order: made once, as there may be hundreds."""
        self.label: Label | None = None
        """What is sealed in here; None: nothing."""
        self.data_sum = b""
        """The checksum of that."""

    def write(self, label: Label, tensors: Mapping[str, Tensor]) -> None:
        """Puts a piece in place of the one before.

        Args:
            tensors: in CPU memory, those of the layout.

        Raises:
            CheckpointError: the label has no room.
        """
        # A death from here to the seal leaves a blank seal, and the other slot has the step before.
        self.open()
        places = ((self.layout.begins[name], tensors[name]) for name in self.layout.specs)
        self.seal(label, copy_with_checksum(self.bytes, places))

    def open(self) -> None:
        """Says that what is in here counts no more, until it is sealed again."""
        self.label = None
        self._memory[:_TEXT_BEGIN] = bytes(_TEXT_BEGIN)

    def seal(self, label: Label, data_sum: bytes) -> None:
        """Says that what is in here is the piece `label`; `data_sum` is its checksum.

        Raises:
            CheckpointError: the label has no room.
        """
        text = f'{{"label": {json.dumps(asdict(label))}, "tensors": {self._tables}}}'.encode()
        if len(text) > self._most_text:
            raise CheckpointError(
                f"what is to be known of step {label.step} has no room in a snapshot, which has "
                f"{_LABEL_BYTES} bytes for it; give fewer metrics, or shorter names"
            )
        self._memory[_TEXT_BEGIN : _TEXT_BEGIN + len(text)] = text
        # The seal is the last write: before it the file is blank, after it all it covers is there.
        lengths = (len(text), self._data_begin, self.layout.num_bytes)
        sums = (data_sum, _short_hash(text))
        # The seal's own checksum is that of the seal with zeros in its place.
        body = _SEAL.pack(_MAGIC, *lengths, *sums, bytes(CHECKSUM_BYTES))
        self._memory[: _SEAL.size] = _SEAL.pack(_MAGIC, *lengths, *sums, _short_hash(body))
        self.label, self.data_sum = label, data_sum

    def remove(self) -> None:
        """Removes the file; the memory goes with the last view of it."""
        self.path.unlink(missing_ok=True)


def read_label(path: Path) -> tuple[Label, Layout] | None:
    """What the file says it has; None where it is no whole file. The data are not looked at."""
    try:
        with path.open("rb") as file:
            head = _read_head(file.read(_SEAL.size), os.fstat(file.fileno()).st_size)
            file.seek(_TEXT_BEGIN)
            text = file.read(head.text_bytes)
        return _parsed(text, head)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def read_piece(path: Path) -> Found | None:
    """The piece in a file, checked; None where there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = _read_head(file.read(_SEAL.size), size)
            # Private and writable, as torch wants it: nobody writes.
            memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE)
        whole = np.frombuffer(memory, dtype=np.uint8)
        text = memory[_TEXT_BEGIN : _TEXT_BEGIN + head.text_bytes]
        label, layout = _parsed(text, head)
        data = whole[head.data_begin : head.data_begin + head.data_bytes]
        if checksum(data) != head.data_sum:
            return None
        return Found(path, label, layout, torch.from_numpy(data))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


@dataclass(frozen=True, slots=True)
class _Head:
    text_bytes: int
    data_begin: int
    data_bytes: int
    data_sum: bytes
    text_sum: bytes


def _read_head(seal: bytes, size: int) -> _Head:
    magic, text_bytes, data_begin, data_bytes, data_sum, text_sum, own_sum = _SEAL.unpack(seal)
    body = seal[:-CHECKSUM_BYTES] + bytes(CHECKSUM_BYTES)
    if magic != _MAGIC or own_sum != _short_hash(body):
        raise ValueError("the file is not sealed")
    if data_begin + data_bytes > size:
        raise ValueError("the file is too short")
    return _Head(text_bytes, data_begin, data_bytes, data_sum, text_sum)


def _parsed(text: bytes, head: _Head) -> tuple[Label, Layout]:
    if _short_hash(text) != head.text_sum:
        raise ValueError("the text does not match its checksum")
    content = json.loads(text)
    label: dict[str, Any] = content["label"]
    layout = Layout.of(
        {name: Spec(dtype, tuple(shape)) for name, (dtype, shape) in content["tensors"].items()}
    )
    if layout.num_bytes != head.data_bytes:
        raise ValueError("the tensors do not fill the data")
    return Label(**{**label, "progress": Progress(**label["progress"])}), layout


def _short_hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def _page_end(num_bytes: int) -> int:
    return rounded_up(num_bytes, mmap.PAGESIZE)
