"""Messages between GPUs of one node through memory of the receiver's GPU, which both reach.

    sender     [1] waits for a free slot   [2] copies a message there, in its stream for this link
               [3] marks that in the stream, then rings with the number of the slot
    receiver   [4] its own stream waits for the mark and copies the slot into new tensors
               [5] when that is done, rings that the slot is free

The receiver has two slots. Threads wait for bells and for [5]; streams wait for marks, so that the
ranks may go on ahead of their GPUs. No kernel waits for another rank, and nothing can wait in a
circle: whatever a stream waits for was given to another stream before. A copy to a slot waits for
nobody else's GPU, as the slot is known to be free: so whoever dies leaves no copy behind that the
other one has to fear, and only a receiver's stream may be left waiting, in a process that hears of
the death by its bells.

Where a message is longer than the slots are, the sender asks for longer ones, once all are free.
Those before stay where they are for as long as the process lives: CUDA does not say what becomes of
memory that is given back while another process has it open. Both processes share marks, too, which
end with the process of the sender; so that ends when all slots are free (`Group.at_close`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bundlerun.launcher.layout.rounding import rounded_up
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event
from bundlerun.workers.device.shared_memory import (
    event_handle,
    event_of,
    memory_handle,
    memory_of,
    shared_event,
)
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.pipeline.message import POSTED_AHEAD, Specs, TensorSpec, specs_of
from bundlerun.workers.pipeline.staging import Copies
from bundlerun.workers.rank.node_memory import NodeMemory
from bundlerun.workers.values.flat import laid_out, num_bytes_of

_SENDER, _RECEIVER = 0, 1
_MESSAGE, _TOLD = 0, 1
"""Bells: of the sender, a message is in this slot; of the receiver, this slot is free. On the other
channel both ring when they have written something to their pages, with its length."""
NUM_CHANNELS = 2
PAGE_BYTES = 4096

_NUM_SLOTS = 2
_LONGER = (1 << 32) - 1
"""In the place of a slot's number: longer slots are wanted, and the next bell says how long, in
units."""
_UNIT = 2 << 20
"""Bytes; as much as a driver gives at least."""


class DeviceSlotSender:
    """The sending end; collective with the receiving one.

    Args:
        memory: joins sender and receiver, in this order, with pages of `PAGE_BYTES`.
        device: the GPU.
        purpose: of the stream that copies.

    Raises:
        CannotShareError: the GPU has no marks for other processes.
    """

    def __init__(self, memory: NodeMemory, device: torch.device, purpose: str) -> None:
        self._memory = memory
        self._device = device
        self._purpose = purpose
        self._copied = [shared_event(device) for _ in range(_NUM_SLOTS)]
        self._helper = Helper("link-send", device)
        self._left: deque[Future[None]] = deque()
        self._kept: list[Tensor] = []
        """All slots that there ever were."""
        self._free: deque[int] = deque()
        _tell(memory, _RECEIVER, [event_handle(event) for event in self._copied])

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Sends what the current stream will have made by then; waits for nobody."""
        while self._left and self._left[0].done():
            self._left.popleft().result()
        # Tensors of the CPU (targets, specs) are there already.
        ready = door.mark(self._device) if any(map(door.is_on_gpu, tensors)) else None
        self._left.append(self._helper.add(partial(self._send, tensors, ready)))

    def _send(self, tensors: Sequence[Tensor], ready: Event | None) -> None:
        specs = specs_of(tensors)
        # [1]
        number = self._free_slot(_num_bytes(specs))
        stream = door.stream(self._device, self._purpose)
        with door.on_stream(self._device, self._purpose):
            if ready is not None:
                stream.wait_event(ready)
            # [2]
            for place, tensor in zip(_places(self._slots[number], specs), tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
                # The rank may let go of it before the copy is done.
                door.used_by(tensor, stream)
            # [3] In this order: who waits for a mark waits for its last record before that.
            self._copied[number].record(stream)
        self._memory.ring(_RECEIVER, _MESSAGE, number)

    @property
    def _slots(self) -> list[Tensor]:
        return self._kept[-_NUM_SLOTS:]

    def _free_slot(self, num_bytes: int) -> int:
        if not self._kept or num_bytes > self._kept[-1].numel():
            self._lengthen(num_bytes)
        if not self._free:
            self._hear()
        return self._free.popleft()

    def _hear(self) -> None:
        """Waits until one more slot is free."""
        self._free.append(self._memory.wait(_RECEIVER, _MESSAGE))

    def _all_free(self) -> None:
        while len(self._free) < len(self._slots):
            self._hear()

    def _lengthen(self, num_bytes: int) -> None:
        self._all_free()
        self._memory.ring(_RECEIVER, _MESSAGE, _LONGER)
        self._memory.ring(_RECEIVER, _MESSAGE, rounded_up(max(1, num_bytes), _UNIT) // _UNIT)
        found = _hear_told(self._memory, _RECEIVER)
        for handle in found["handles"]:
            self._kept.append(memory_of(handle, found["num_bytes"], self._device))
        self._free = deque(range(_NUM_SLOTS))

    def wait(self, most_left: int) -> None:
        """Returns when all messages but that many, and a few, have left."""
        while len(self._left) > most_left:
            self._left.popleft().result()

    def finish(self) -> None:
        """Returns when the receiver needs nothing of this process any more."""
        self.wait(0)
        self._helper.add(self._all_free).result()


class DeviceSlotReceiver:
    """The receiving end; collective with the sending one.

    Args:
        memory: joins sender and receiver, in this order, with pages of `PAGE_BYTES`.
        device: the GPU.
        purpose: of the stream that copies.

    Raises:
        CannotShareError: the sender's marks cannot be opened.
    """

    posts_ahead = POSTED_AHEAD

    def __init__(self, memory: NodeMemory, device: torch.device, purpose: str) -> None:
        self._memory = memory
        self._device = device
        self._purpose = purpose
        self._kept: list[Tensor] = []
        """All slots that there ever were."""
        self._helper = Helper("link-receive", device)
        self._giver = Helper("link-free", device)
        self.copied = [event_of(handle, device) for handle in _hear_told(memory, _SENDER)]

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        """See `Receiver`; only the current stream waits for the message."""
        copies = self._helper.add(lambda: self.copy_out(self.next_slot(), specs))
        return lambda: copies.result().use(self._device)

    def copy_out(self, number: int, specs: Specs) -> Copies:
        """Starts to copy the message in a slot, and has the slot given back when that is done."""
        stream = door.stream(self._device, self._purpose)
        with door.on_stream(self._device, self._purpose):
            # [4]
            stream.wait_event(self.copied[number])
            found = [torch.empty(s.shape, dtype=s.dtype, device=self._device) for s in specs]
            for tensor, place in zip(found, _places(self._slots[number], specs), strict=True):
                tensor.copy_(place, non_blocking=True)
            done = door.mark(self._device)
        self._giver.add(partial(self._give_back, number, done))
        return Copies(found, done)

    @property
    def _slots(self) -> list[Tensor]:
        return self._kept[-_NUM_SLOTS:]

    def next_slot(self) -> int:
        """Waits for a message, and returns the number of its slot."""
        while (number := self._memory.wait(_SENDER, _MESSAGE)) == _LONGER:
            self._lengthen(self._memory.wait(_SENDER, _MESSAGE) * _UNIT)
        return number

    def _lengthen(self, num_bytes: int) -> None:
        """Makes slots of that many bytes, and tells the sender of them."""
        with door.on_stream(self._device, self._purpose):
            for _ in range(_NUM_SLOTS):
                self._kept.append(torch.zeros(num_bytes, dtype=torch.uint8, device=self._device))
            # Who used this memory before may have been a stream, and the sender waits for none.
            door.finish(self._device)
        handles = [memory_handle(slot) for slot in self._slots]
        _tell(self._memory, _SENDER, {"num_bytes": num_bytes, "handles": handles})

    def _give_back(self, number: int, done: Event) -> None:
        # [5] Waited for by a thread, so that the sender's process may end then.
        done.synchronize()
        with suppress(RuntimeError):  # a sender that is gone needs no slots
            self._memory.ring(_SENDER, _MESSAGE, number)

    def finish(self) -> None:
        """Returns when the sender knows that all slots are free; a rank calls it last."""
        self._giver.add(_nothing).result()


def _nothing() -> None:
    pass


def _tell(memory: NodeMemory, peer: int, value: object) -> None:
    """Writes JSON to the own page."""
    data = json.dumps(value).encode()
    memory.own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    memory.ring(peer, _TOLD, len(data))


def _hear_told(memory: NodeMemory, peer: int) -> Any:  # noqa: ANN401 (as JSON is)
    """What the peer has written to its page, once it has."""
    length = memory.wait(peer, _TOLD)
    return json.loads(memory.memory[peer][:length].numpy().tobytes())


def _num_bytes(specs: Specs) -> int:
    return laid_out(num_bytes_of(s.shape, s.dtype) for s in specs)[1]


def _places(slot: Tensor, specs: Specs) -> list[Tensor]:
    """Where in a slot the tensors of a message are."""
    starts, _ = laid_out(num_bytes_of(s.shape, s.dtype) for s in specs)
    return [_place(slot, start, spec) for start, spec in zip(starts, specs, strict=True)]


def _place(slot: Tensor, start: int, spec: TensorSpec) -> Tensor:
    return (
        slot[start : start + num_bytes_of(spec.shape, spec.dtype)].view(spec.dtype).view(spec.shape)
    )
