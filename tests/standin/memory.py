"""Memory of the device: tensors whose bytes are the CPU's, and what has used them.

Each tensor is one of torch's own, of another device: DLPack makes it. New memory is all ones in
every bit, which is NaN in any floating type, and so is memory that was given back while a stream
that nobody told of it may still be using it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_POISON = 0xFF
_CPU, _OTHER = 1, 12
"""Devices, as DLPack numbers them; the other one is what torch calls PrivateUse1."""
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "complex": 5, "bool": 6}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_ended: deque[_Managed] = deque(maxlen=4096)
"""torch looks into a description once more right after its storage is gone."""
_capsule: Any = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def _type_of(dtype: torch.dtype) -> _Type:
    name = str(dtype).removeprefix("torch.")
    word = "bool" if dtype == torch.bool else name.rstrip("0123456789")
    return _Type(_CODES[word], dtype.itemsize * 8, 1)


def wrapped(
    base: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    end: Callable[[], None],
    *,
    on_cpu: bool = False,
) -> Tensor:
    """A tensor over flat bytes of the CPU that says it is on the device.

    Args:
        base: of bytes; kept until the tensor's storage is gone.
        size: of the tensor.
        stride: of the tensor, in elements.
        dtype: of the tensor.
        end: called when its storage is gone, in any thread.
        on_cpu: it says that it is on the CPU.
    """
    count = len(size)
    shape, steps = (ctypes.c_int64 * count)(*size), (ctypes.c_int64 * count)(*stride)
    device = _Device(_CPU if on_cpu else _OTHER, 0)
    inner = _Tensor(base.data_ptr(), device, count, _type_of(dtype), shape, steps, 0)
    managed = _Managed(inner, None, None)
    made: Tensor = torch._C._from_dlpack(  # type: ignore[attr-defined]
        _capsule(ctypes.addressof(managed), b"dltensor", None)
    )
    # Not DLPack's own call: it may come while an error is on its way, when Python must not run.
    # torch keeps the storage's object for as long as its memory.
    held = managed, shape, steps, base
    weakref.finalize(made.untyped_storage(), _end, end, held).atexit = False
    return made


def _end(end: Callable[[], None], held: tuple[Any, ...]) -> None:
    _ended.append(held[0])
    end()


@dataclass(slots=True, eq=False)
class Block:
    """Memory behind one storage.

    Args:
        base: its bytes.
        queue: number of the stream that it was taken for.
    """

    base: Tensor
    queue: int
    told: set[int] = field(default_factory=set)
    """Streams that `record_stream` has named."""
    uses: dict[tuple[int, int, int, bool], int] = field(default_factory=dict)
    """By stream, range of bytes and whether it writes: the last thing that used it."""

    @property
    def num_bytes(self) -> int:
        return self.base.numel()

    def poison(self) -> None:
        """Makes whoever reads it notice."""
        self.base.fill_(_POISON)


class Memory:
    """All memory of the device."""

    def __init__(self) -> None:
        self.given_back: deque[Block] = deque()
        """Blocks whose tensors are gone, not yet looked at."""
        self.held_bytes = 0
        self.most_bytes = 0
        self._blocks: dict[int, Block] = {}

    def empty(
        self, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, queue: int
    ) -> Tensor:
        """New memory for a stream."""
        num_bytes = max(1, _extent(size, stride) * dtype.itemsize)
        base = torch.full((num_bytes,), _POISON, dtype=torch.uint8)
        return self.over(base, size, stride, dtype, queue)

    def over(
        self,
        base: Tensor,
        size: Sequence[int],
        stride: Sequence[int],
        dtype: torch.dtype,
        queue: int,
    ) -> Tensor:
        """A tensor of the device over bytes of the CPU, for a stream."""
        block = Block(base, queue)
        address = base.data_ptr()
        self._blocks[address] = block
        self.held_bytes += block.num_bytes
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        return wrapped(base, size, stride, dtype, lambda: self._end(address))

    def _end(self, address: int) -> None:
        # Maybe in the middle of anything: no more than a note.
        block = self._blocks.pop(address)
        self.held_bytes -= block.num_bytes
        self.given_back.append(block)

    def block(self, tensor: Tensor) -> Block:
        """What is behind a tensor of the device."""
        return self._blocks[tensor.untyped_storage().data_ptr()]


def _extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last."""
    if 0 in size:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def range_of(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor may use, from and to."""
    first = tensor.storage_offset() * tensor.element_size()
    return first, first + _extent(tensor.shape, tensor.stride()) * tensor.element_size()


def on_cpu(tensor: Tensor, block: Block) -> Tensor:
    """The same bytes as a tensor of the CPU."""
    storage = block.base.untyped_storage()
    plain = torch.empty(0, dtype=tensor.dtype)
    return plain.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
