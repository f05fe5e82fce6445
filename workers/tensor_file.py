"""A safetensors file, written as a stream: no second copy in memory, the checksum on the way.

    8 bytes     length of the header, little-endian
    header      JSON: name -> dtype, shape, begin and end in the data; padded with spaces to 8 bytes
    data        the tensors, row-major, widest dtype first so that each starts aligned

Source: the format section of the safetensors README. The library's own `save_file` reports a full
disk as its own error without the errno, and its `save` needs the file's size again in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from launcher.errors import CheckpointError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Written(NamedTuple):
    """What is on disk now."""

    size_bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Writes and fsyncs `tensors`, from any device and in any memory layout.

    Raises:
        OSError: the disk is full or `path` cannot be written; what was written stays behind.
        CheckpointError: a tensor has a dtype that the format lacks.
    """
    digest = hashlib.sha256()
    size = 0
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _header(tensors, names)
    with path.open("wb") as file:
        for chunk in chain([memoryview(header)], (_bytes_of(tensors[name]) for name in names)):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor], names: list[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"cannot write {name!r}: dtype {tensor.dtype} is not supported")
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
