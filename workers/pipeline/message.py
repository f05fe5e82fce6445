"""What travels on a link: kinds of messages, and how a receiver learns what one looks like."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.workers.values.flat import dtype_named, name_of_dtype
from bundlerun.workers.values.nest import Form
from bundlerun.workers.values.strides import are_alike, row_major, strides_of, with_strides

_SPEC_BYTES = 64 << 10
POSTED_AHEAD = 2
"""Double buffering: one message arrives while the one before is worked on."""


class Kind(NamedTuple):
    """What both ends know of a message without being told."""

    training: bool
    num_samples: int
    microbatch: int | None = None
    """Its number in the step where messages differ, so that each is described; else None."""


class TensorSpec(NamedTuple):
    """How to receive one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    strides: tuple[int, ...]
    """As the sender has it where its elements fill their memory without gaps; else row-major."""

    @property
    def is_row_major(self) -> bool:
        """Whether the last dimension is the one that changes from element to element."""
        return are_alike(self.shape, self.strides, row_major(self.shape))

    @property
    def in_memory(self) -> TensorSpec:
        """What a transport carries: the same elements in row-major order, flat if need be."""
        if self.is_row_major:
            return self
        return TensorSpec((math.prod(self.shape),), self.dtype, False, (1,))


Specs = tuple[TensorSpec, ...]

PACKED: Specs = (TensorSpec((_SPEC_BYTES,), torch.uint8, False, (1,)),)
"""The specs of what `packed` gives."""


def specs_of(tensors: Iterable[Tensor]) -> Specs:
    """What a receiver has to know about `tensors`."""
    return tuple(
        TensorSpec(tuple(t.shape), t.dtype, t.requires_grad, strides_of(t)) for t in tensors
    )


def as_it_lies(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """The elements as `spec.in_memory` has them; a copy only where the tensor lies otherwise.

    So what a stage hands on in channels_last is neither rearranged here nor where it arrives.
    """
    if spec.is_row_major:
        return tensor  # the transport copies it in that order, if it lies otherwise
    return with_strides(tensor, spec.strides).as_strided((tensor.numel(),), (1,))


def restore_strides(tensor: Tensor, spec: TensorSpec) -> None:
    """Makes what arrived as `spec.in_memory` what `spec` says, in place."""
    if tensor.stride() != spec.strides:
        tensor.as_strided_(spec.shape, spec.strides)


def described(specs: Specs) -> str:
    """For people."""
    tensors = (f"{name_of_dtype(s.dtype)} {list(s.shape)}" for s in specs)
    return " and ".join(tensors) or "nothing"


def packed(specs: Specs, form: Form = None) -> Tensor:
    """Specs as a flat uint8 tensor that can be sent; its own specs are always `PACKED`.

    Args:
        specs: of the tensors of a message.
        form: how they are nested (`workers.values.nest`); None: the receiver knows.

    Raises:
        RuntimeError: there are too many of them for one message.
    """
    rows = [(list(s.shape), name_of_dtype(s.dtype), s.requires_grad, s.strides) for s in specs]
    data = json.dumps([rows, form]).encode()
    data = zlib.compress(data, level=1)
    if len(data) > _SPEC_BYTES:
        raise RuntimeError(f"{len(specs)} tensors cross one cut, more than a message can describe")
    # Always that long: the receiver knows nothing else yet.
    found = torch.zeros(_SPEC_BYTES, dtype=torch.uint8)
    found[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return found


def unpacked(tensor: Tensor) -> tuple[Specs, Form]:
    """The specs and the form that `packed` was given."""
    # What comes after the end of what was compressed is left alone.
    data = zlib.decompressobj().decompress(tensor.cpu().numpy().tobytes())
    rows, form = json.loads(data)
    specs = (TensorSpec(tuple(n), dtype_named(name), grad, tuple(s)) for n, name, grad, s in rows)
    return tuple(specs), form
