"""A link: one directed edge of a bundle, first in, first out, received ahead of need (I5).

    sender    spec? t0 t1 | t0 t1 | ...        a message is the tensors of one micro-batch
    receiver  spec? t0 t1 | t0 t1 | ...        the spec travels once per kind of message

Both ends know the kind of every message (training or not, how many samples), so from the second
message of a kind on the receiver posts its buffers before the data is there.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from launcher.errors import ConfigError
from workers.comm import Group

_SPEC_BYTES = 64 << 10
_POSTED_AHEAD = 2
"""Double buffering: one message arrives while the one before is worked on."""
_MAX_UNWAITED = 8
"""Messages kept alive for the transport before the oldest is waited for."""


class Kind(NamedTuple):
    """What both ends know of a message without being told."""

    training: bool
    num_samples: int


class TensorSpec(NamedTuple):
    """How to receive one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


def specs_of(tensors: Iterable[Tensor]) -> tuple[TensorSpec, ...]:
    """What a receiver has to know about `tensors`."""
    return tuple(TensorSpec(tuple(t.shape), t.dtype, t.requires_grad) for t in tensors)


@dataclass(frozen=True, slots=True)
class _Message:
    buffers: list[Tensor]
    works: list[Work]

    def wait(self) -> None:
        for work in self.works:
            work.wait()


class OutLink:
    """The sending end.

    Args:
        group: sender first, receiver second.
        tells_specs: whether the first message of a kind goes with its spec.
    """

    def __init__(self, group: Group, *, tells_specs: bool) -> None:
        self._group = group
        self._tells_specs = tells_specs
        self._told: dict[Kind, tuple[TensorSpec, ...]] = {}
        self._unwaited: deque[_Message] = deque()

    def send(self, kind: Kind, tensors: Sequence[Tensor]) -> None:
        """Starts sending; returns before the data has left.

        Raises:
            ConfigError: the tensors differ from those of an earlier message of this kind.
        """
        if self._tells_specs:
            self._tell(kind, specs_of(tensors))
        self._push([t.detach() for t in tensors])
        while len(self._unwaited) > _MAX_UNWAITED:
            self._unwaited.popleft().wait()

    def _tell(self, kind: Kind, specs: tuple[TensorSpec, ...]) -> None:
        if kind not in self._told:
            self._told[kind] = specs
            self._push([_packed(specs)])
        elif specs != self._told[kind]:
            # Gloo would fill a longer buffer in part without a word, and abort on a shorter one.
            raise ConfigError(
                f"a micro-batch of {kind.num_samples} samples sends {_described(specs)} across a "
                f"cut, where {_described(self._told[kind])} crossed a cut before; make all samples "
                "of one shape, or use --shape 1"
            )

    def _push(self, tensors: list[Tensor]) -> None:
        ready = [_sendable(t, self._group.backend) for t in tensors]
        works = [work for t in ready for work in self._group.send(t, 1)]
        self._unwaited.append(_Message(ready, works))

    def finish(self) -> None:
        """Waits until everything has left."""
        while self._unwaited:
            self._unwaited.popleft().wait()


class InLink:
    """The receiving end.

    Args:
        group: sender first, receiver second.
        device: where received tensors are wanted.
        is_told_specs: False where `learn` gives the specs, as for gradients.
    """

    def __init__(self, group: Group, device: torch.device, *, is_told_specs: bool) -> None:
        self._group = group
        self._device = device
        self._is_told = is_told_specs
        self._specs: dict[Kind, tuple[TensorSpec, ...]] = {}
        self._expected: deque[Kind] = deque()
        self._posted: deque[tuple[tuple[TensorSpec, ...], _Message]] = deque()

    def expect(self, kinds: Iterable[Kind]) -> None:
        """Announces the next messages, in order; posts the first of them."""
        self._expected.extend(kinds)
        self._post()

    def learn(self, kind: Kind, specs: tuple[TensorSpec, ...]) -> None:
        """Says what a kind of message looks like."""
        self._specs.setdefault(kind, specs)

    def receive(self) -> list[Tensor]:
        """The next expected message, as leaves on the device that require grad where sent so."""
        if not self._posted:
            if self._expected[0] not in self._specs and self._is_told:
                self._specs[self._expected[0]] = self._read_specs()
            self._post()
        specs, message = self._posted.popleft()
        message.wait()
        self._post()
        tensors = [b.to(self._device, non_blocking=True) for b in message.buffers]
        for tensor, spec in zip(tensors, specs, strict=True):
            tensor.requires_grad_(spec.requires_grad)
        return tensors

    def _post(self) -> None:
        while (
            self._expected
            and len(self._posted) < _POSTED_AHEAD
            and self._expected[0] in self._specs
        ):
            specs = self._specs[self._expected.popleft()]
            buffers = [self._buffer(spec) for spec in specs]
            works = [work for b in buffers for work in self._group.receive(b, 0)]
            self._posted.append((specs, _Message(buffers, works)))

    def _buffer(self, spec: TensorSpec) -> Tensor:
        if self._group.backend == "nccl":
            return torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        pinned = self._device.type == "cuda"
        return torch.empty(spec.shape, dtype=spec.dtype, pin_memory=pinned)

    def _read_specs(self) -> tuple[TensorSpec, ...]:
        device = self._device if self._group.backend == "nccl" else torch.device("cpu")
        packed = torch.empty(_SPEC_BYTES, dtype=torch.uint8, device=device)
        for work in self._group.receive(packed, 0):
            work.wait()
        return _unpacked(packed)


def _sendable(tensor: Tensor, backend: str) -> Tensor:
    """A contiguous tensor that the backend can send; a copy through pinned memory if need be."""
    if backend == "nccl":
        return tensor.contiguous().cuda(non_blocking=True)
    if tensor.device.type == "cpu":
        return tensor.contiguous()
    staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    staged.copy_(tensor)
    return staged


def _described(specs: tuple[TensorSpec, ...]) -> str:
    tensors = (f"{str(s.dtype).removeprefix('torch.')} {list(s.shape)}" for s in specs)
    return " and ".join(tensors) or "nothing"


def _packed(specs: tuple[TensorSpec, ...]) -> Tensor:
    rows = [(list(s.shape), str(s.dtype).removeprefix("torch."), s.requires_grad) for s in specs]
    data = json.dumps(rows).encode()
    if len(data) > _SPEC_BYTES:
        raise RuntimeError(f"{len(specs)} tensors cross one cut, more than a message can describe")
    packed = torch.full((_SPEC_BYTES,), ord(" "), dtype=torch.uint8)
    packed[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return packed


def _unpacked(packed: Tensor) -> tuple[TensorSpec, ...]:
    rows = json.loads(packed.cpu().numpy().tobytes())
    return tuple(TensorSpec(tuple(dims), getattr(torch, name), grad) for dims, name, grad in rows)
