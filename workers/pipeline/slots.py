"""Messages between two processes of one node through memory that they share.

    sender     [1] copies a message into a free slot   [2] rings with the number of the slot
    receiver   [3] gets tensors whose memory is the slot
               [4] rings when nothing refers to them any more

So a message is copied once, and the receiver does not copy at all. The slot replaces memory that
the receiver would have allocated, for as long as autograd keeps it. Where no slot is free, the
sender adds one: it never waits, and there are as many as ever were on the way or in use at once.

Between GPUs both ends register the slots, so that [1] is done by the one GPU and the other one
copies from there by itself; see `bundlerun.workers.pipeline.staging`.
"""

from __future__ import annotations

import mmap
import os
import resource
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.layout.rounding import rounded_up
from bundlerun.workers.device.host_memory import Registration, register
from bundlerun.workers.pipeline.message import POSTED_AHEAD, Specs, TensorSpec, specs_of
from bundlerun.workers.rank.node_memory import NodeMemory
from bundlerun.workers.values.flat import laid_out, num_bytes_of

_CPU = torch.device("cpu")
_SENDER, _RECEIVER = 0, 1
_FREE, _TAKEN = 0, 1
"""Bells of the receiver: the slot may be used again; the message has been received."""
NUM_CHANNELS = 2

_MOST_BYTES = 1 << 40
"""Address space of one link, far beyond any machine's memory."""
_UNIT = mmap.ALLOCATIONGRANULARITY


class Slot(NamedTuple):
    """A part of the memory that both ends map."""

    number: int
    """Where it starts, in units."""
    memory: mmap.mmap


class SlotSender:
    """The sending end; collective with the receiving one.

    Args:
        memory: joins sender and receiver, in this order, with `NUM_CHANNELS`.
        device: what copies into the slots that are lent.
    """

    def __init__(self, memory: NodeMemory, device: torch.device = _CPU) -> None:
        self._memory = memory
        self._device = device
        self._registered: dict[int, Registration | None] = {}
        self._file = os.memfd_create("bundlerun-link")
        self._size = _most_bytes()
        os.ftruncate(self._file, self._size)  # takes no memory yet
        self._length = 0
        self._slots: dict[int, Slot] = {}
        self._free: list[Slot] = []
        self._num_left = 0
        # The receiver opens the file through /proc by these two numbers.
        for number in (os.getpid(), self._file):
            memory.ring(_RECEIVER, note=number)
        # Heard here, where it means "opened": later a bell of this channel frees a slot.
        memory.wait(_RECEIVER)

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Copies a message to where the receiver finds it; waits for nobody."""
        slot, places = self._places(specs_of(tensors))
        # [1]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        self.give(slot)

    def lend(self, specs: Specs) -> tuple[Slot, list[Tensor]]:
        """A free slot, and the places in it that the device may copy a message to by itself."""
        slot, places = self._places(specs)
        if slot.number not in self._registered:
            self._registered[slot.number] = _registered(slot.memory, self._device)
        return slot, places

    def give(self, slot: Slot) -> None:
        """Tells the receiver that the message is in the slot."""
        # [2]
        self._memory.ring(_RECEIVER, note=slot.number)
        self._num_left += 1

    def _places(self, specs: Specs) -> tuple[Slot, list[Tensor]]:
        self._hear()
        starts, num_bytes = _layout(specs)
        slot = self._slot(num_bytes)
        return slot, [
            _tensor(slot.memory, spec.shape, spec.dtype, start)
            for start, spec in zip(starts, specs, strict=True)
        ]

    def wait(self, most_left: int) -> None:
        """Returns when the receiver has all messages but that many."""
        while self._num_left > most_left:
            self._memory.wait(_RECEIVER, _TAKEN)
            self._num_left -= 1

    def finish(self) -> None:
        """Returns at once: what is in a slot outlives this process."""

    def _hear(self) -> None:
        """Takes in all bells that the receiver has rung so far, without waiting."""
        while self._memory.has_rung(_RECEIVER, _TAKEN):
            self._memory.wait(_RECEIVER, _TAKEN)
            self._num_left -= 1
        while self._memory.has_rung(_RECEIVER, _FREE):
            self._free.append(self._slots[self._memory.wait(_RECEIVER, _FREE)])

    def _slot(self, num_bytes: int) -> Slot:
        """The smallest free slot that is large enough; a new one where there is none."""
        fitting = [slot for slot in self._free if len(slot.memory) >= num_bytes]
        if fitting:
            found = min(fitting, key=lambda slot: len(slot.memory))
            self._free.remove(found)
            return found
        # Asked for more than there is, the kernel would take all there is before it says no.
        room = min(self._size - self._length, psutil.virtual_memory().available)
        if num_bytes > room:
            raise NodeError(
                f"no memory for {num_bytes / 2**20:.0f} MiB more between two stages; "
                "use a smaller --microbatch-size or fewer ranks per node"
            )
        # With no memory left this raises; a later write to a page that is not there would kill us.
        os.posix_fallocate(self._file, self._length, num_bytes)
        memory = mmap.mmap(self._file, num_bytes, offset=self._length)
        slot = Slot(self._length // _UNIT, memory)
        self._slots[slot.number] = slot
        self._length += num_bytes
        return slot


class SlotReceiver:
    """The receiving end; collective with the sending one.

    Args:
        memory: joins sender and receiver, in this order, with `NUM_CHANNELS`.
        device: what copies from the slots.
    """

    posts_ahead = POSTED_AHEAD

    def __init__(self, memory: NodeMemory, device: torch.device = _CPU) -> None:
        self._memory = memory
        self._device = device
        self._registered: dict[int, Registration | None] = {}
        self._pid = os.getpid()
        sender, descriptor = memory.wait(_SENDER), memory.wait(_SENDER)
        self._file = os.open(f"/proc/{sender}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        self._slots: dict[int, mmap.mmap] = {}
        memory.ring(_SENDER)

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        """Gives a function that waits for the next message; to be called in order."""
        return partial(self._take, specs)

    def _take(self, specs: Specs) -> list[Tensor]:
        number = self._memory.wait(_SENDER)
        self._ring(_TAKEN, number)
        starts, num_bytes = _layout(specs)
        # [3]
        view = memoryview(self._slot(number, num_bytes))
        # [4] Each of the tensors holds the view, whoever holds the tensor.
        weakref.finalize(view, self._ring, _FREE, number).atexit = False
        return [
            _tensor(view, spec.shape, spec.dtype, start)
            for start, spec in zip(starts, specs, strict=True)
        ]

    def _slot(self, number: int, num_bytes: int) -> mmap.mmap:
        found = self._slots.get(number)
        if found is None or len(found) < num_bytes:
            # Nobody has a message in it: the sender would not have taken it for this one.
            before = self._registered.pop(number, None)
            if before is not None:
                before.end()
            found = mmap.mmap(self._file, num_bytes, offset=number * _UNIT)
            self._slots[number] = found
            self._registered[number] = _registered(found, self._device)
        return found

    def _ring(self, channel: int, number: int) -> None:
        # A process for loading data is forked with the tensors, and they are not its to give back.
        if os.getpid() == self._pid:
            with suppress(RuntimeError):  # a sender that is gone needs no slots
                self._memory.ring(_SENDER, channel, number)


def _registered(memory: mmap.mmap, device: torch.device) -> Registration | None:
    """Lets a GPU reach a slot for as long as the process lives, as the slot does."""
    return register(torch.frombuffer(memory, dtype=torch.uint8), device)


def _most_bytes() -> int:
    """The longest that the file may be, within the user's limit on files."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return _MOST_BYTES if limit == resource.RLIM_INFINITY else min(limit, _MOST_BYTES)


def _layout(specs: Iterable[TensorSpec]) -> tuple[list[int], int]:
    """Where in a slot each tensor starts, and the bytes that the slot has at least."""
    starts, end = laid_out(num_bytes_of(spec.shape, spec.dtype) for spec in specs)
    return starts, rounded_up(max(1, end), _UNIT)


def _tensor(
    memory: mmap.mmap | memoryview, shape: Sequence[int], dtype: torch.dtype, start: int
) -> Tensor:
    count = torch.Size(shape).numel()
    if not count:
        return torch.empty(shape, dtype=dtype)
    # Not a view of the flat tensor, as `view` would make it: autograd treats those differently.
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).resize_(shape)
