"""A safetensors file, written as a stream: no second copy in memory, the checksum on the way.

    8 bytes     length of the header, little-endian
    header      JSON: name -> dtype, shape, begin and end in the data; padded with spaces to 8 bytes
    data        the tensors, row-major, widest dtype first so that each starts aligned

Complex tensors are pairs of reals, (real, imaginary), along a last dimension of 2; their names are
in the header's metadata, as a list in JSON under "complex".

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

from bundlerun.launcher.errors import CheckpointError
from bundlerun.workers.values.flat import bytes_of

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
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_PAIRS = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for a tensor that `write_tensors` could not write."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise CheckpointError(f"cannot write {name!r}: its layout is {tensor.layout}")
        if _real_dtype(tensor) not in _DTYPES:
            raise CheckpointError(f"cannot write {name!r}: dtype {tensor.dtype} is not supported")


class Written(NamedTuple):
    """What is on disk now."""

    size_bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Writes and fsyncs `tensors`, from any device and in any memory layout.

    Raises:
        OSError: the disk is full or `path` cannot be written; what was written stays.
        CheckpointError: a tensor has a dtype that the format lacks.
    """
    digest = hashlib.sha256()
    size = 0
    # Largest elements first: each tensor then begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    check_dtypes(tensors)
    header = _header(tensors, names)
    with path.open("wb") as file:
        for chunk in chain([memoryview(header)], (_bytes_of(tensors[name]) for name in names)):
            # Hashed on the way, so that nothing has to be read again.
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def _bytes_of(tensor: Tensor) -> memoryview:
    return bytes_of(tensor.detach().cpu().resolve_conj()).data


def _real_dtype(tensor: Tensor) -> torch.dtype:
    return _PAIRS.get(tensor.dtype, tensor.dtype)


def _header(tensors: Mapping[str, Tensor], names: list[str]) -> bytes:
    # The format has no complex numbers: they are pairs of reals, and the metadata says which.
    pairs = sorted(name for name in names if tensors[name].is_complex())
    metadata = {"format": "pt"} | ({"complex": json.dumps(pairs)} if pairs else {})
    entries: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[_real_dtype(tensor)],
            "shape": [*tensor.shape, *([2] if tensor.is_complex() else [])],
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries).encode()
    # Padded with spaces, as the format allows, so that the tensors begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
