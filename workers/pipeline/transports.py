"""What carries the messages of one link, chosen when its two ends are made.

on the CPU, within a node       shared memory (`slots`); gloo where the system forbids it
on the CPU, between nodes       gloo
on GPUs, transport "cpu"        slots that both GPUs reach, or gloo and pinned memory (`staging`)
on GPUs, transport "ipc"        within a node, memory of the receiver's GPU (`device_slots`), where
                                a trial finds that it works (`device_trial`); else as "cpu"
on GPUs, transport "nccl"       NCCL (`bundlerun.workers.pipeline.nccl`)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.interface import Event
from bundlerun.workers.pipeline.device_trial import try_receiver, try_sender
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.pipeline.message import POSTED_AHEAD, Specs, specs_of
from bundlerun.workers.pipeline.nccl import NcclReceiver, NcclSender
from bundlerun.workers.pipeline.slots import NUM_CHANNELS, SlotReceiver, SlotSender
from bundlerun.workers.pipeline.staging import Staging
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.node_memory import NodeMemory

_SENDER, _RECEIVER = 0, 1
_STAGED_AHEAD = 2
"""Messages copied off the GPU before their turn: one leaves while the next is copied."""


class Sender(Protocol):
    """The sending end of a link."""

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Starts to send a message; waits for nobody.

        The tensors must not change from here on.

        Raises:
            RuntimeError: the receiver is gone, or an earlier message could not be sent.
            NodeError: there is no memory for it.
        """
        ...

    def wait(self, most_left: int) -> None:
        """Returns when the receiver has taken, or posted for, all messages but that many."""
        ...

    def finish(self) -> None:
        """Returns when the process may end without losing a message."""
        ...


class Receiver(Protocol):
    """The receiving end of a link."""

    posts_ahead: int
    """Messages that may be posted before the rank comes to them."""

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        """Gets ready for the next message, and gives a function that waits for it.

        Those functions are called in the order of the messages.
        """
        ...


def open_sender(group: Group) -> Sender:
    """The sending end that suits the two ranks.

    Collective with `open_receiver`.
    """
    if group.backend == "nccl":
        return NcclSender(group)
    if not door.num_gpus():
        memory = _connect(group)
        return GlooSender(group) if memory is None else SlotSender(memory)
    device = door.current_gpu()
    direct = try_sender(group, device) if group.tries_ipc else None
    if direct is not None:
        return direct
    memory = _connect(group)
    sender = GlooSender(group) if memory is None else SlotSender(memory, device)
    return StagedSender(sender, device)


def open_receiver(group: Group, device: torch.device) -> Receiver:
    """The receiving end that suits the two ranks.

    Collective with `open_sender`.
    """
    if group.backend == "nccl":
        return NcclReceiver(group, device)
    direct = try_receiver(group, device) if group.tries_ipc else None
    if direct is not None:
        return direct
    memory = _connect(group)
    if not door.is_gpu(device):
        return GlooReceiver(group) if memory is None else SlotReceiver(memory)
    staging = Staging(device)
    if memory is None:
        return StagedReceiver(GlooReceiver(group, staging.buffers), staging, device)
    return StagedReceiver(SlotReceiver(memory, device), staging, device)


def _connect(group: Group) -> NodeMemory | None:
    # One byte, as a mapping cannot be empty: only the bells are used, slots are another file.
    return NodeMemory.connect(group, 1, num_channels=NUM_CHANNELS) if group.is_one_node else None


class GlooSender:
    """Sends from CPU memory, by two threads.

    One starts: gloo copies what the kernel takes at once, 1 ms for 2.5 MB. The other waits, and
    then drops what has left.

    Args:
        group: sender first, receiver second.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._started: deque[Future[Future[None]]] = deque()
        self._starter = Helper("link-send", torch.device("cpu"))
        self._waiter = Helper("link-wait", torch.device("cpu"))

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Has the message sent; gloo continues as soon as the receiver is ready."""
        # The two results raise what went wrong: in starting it, in its way.
        while self._started and _is_done(self._started[0]):
            self._started.popleft().result().result()
        self._started.append(self._starter.add(partial(self._start, tensors)))

    def _start(self, tensors: Sequence[Tensor]) -> Future[None]:
        ready = [tensor.contiguous() for tensor in tensors]
        works = [work for tensor in ready for work in self._group.send(tensor, _RECEIVER)]
        return self._waiter.add(partial(_wait, works, ready))

    def wait(self, most_left: int) -> None:
        """Returns when all messages but that many have left."""
        while len(self._started) > most_left:
            self._started.popleft().result().result()

    def finish(self) -> None:
        """Returns when all messages have left."""
        self.wait(0)


def _is_done(started: Future[Future[None]]) -> bool:
    return started.done() and (started.exception() is not None or started.result().done())


def _wait(works: Sequence[Work], _kept: Sequence[Tensor]) -> None:
    for work in works:
        work.wait()


def _empty(specs: Specs) -> list[Tensor]:
    return [torch.empty(spec.shape, dtype=spec.dtype) for spec in specs]


class GlooReceiver:
    """Receives into CPU memory.

    Args:
        group: sender first, receiver second.
        allocate: gives the memory.
    """

    posts_ahead = POSTED_AHEAD

    def __init__(self, group: Group, allocate: Callable[[Specs], list[Tensor]] = _empty) -> None:
        self._group = group
        self._allocate = allocate

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        """See `Receiver`."""
        buffers = self._allocate(specs)
        works = [work for buffer in buffers for work in self._group.receive(buffer, _SENDER)]

        def arrived() -> list[Tensor]:
            _wait(works, buffers)
            return buffers

        return arrived


class StagedSender:
    """Sends from a GPU through CPU memory; a thread waits for the copies, not the rank.

    From the first message of a GPU on, only the thread uses the sender inside.

    Args:
        sender: the one inside, which sends from CPU memory.
        device: the GPU.
    """

    def __init__(self, sender: Sender, device: torch.device) -> None:
        self._sender = sender
        self._device = device
        self._helper = Helper("link-stage", device)
        self._left: deque[Future[None]] = deque()
        self._staging: Staging | None = None

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Sends what the current stream will have made by then."""
        while self._left and self._left[0].done():
            self._left.popleft().result()
        if self._staging is None and any(map(door.is_on_gpu, tensors)):
            self._staging = Staging(self._device)
        # A link of targets carries CPU tensors only, and needs neither copies nor a thread.
        if self._staging is None:
            self._sender.send(tensors)
        else:
            self._left.append(self._helper.add(self._staged(self._staging, tensors)))

    def _staged(self, staging: Staging, tensors: Sequence[Tensor]) -> Callable[[], None]:
        ready = staging.mark()
        if isinstance(self._sender, SlotSender):
            return partial(self._send_by_slot, self._sender, staging, tensors, ready)
        # What is far from its turn stays on the GPU until then, so that little memory is pinned.
        is_near = len(self._left) < _STAGED_AHEAD
        copies = staging.copy_out(tensors, ready) if is_near else None

        def send() -> None:
            found, done = copies or staging.copy_out(tensors, ready)
            done.synchronize()
            self._sender.send(found)
            self._sender.wait(_STAGED_AHEAD)  # pinned memory is dear

        return send

    def _send_by_slot(
        self, sender: SlotSender, staging: Staging, tensors: Sequence[Tensor], ready: Event
    ) -> None:
        slot, places = sender.lend(specs_of(tensors))
        staging.copy_into(places, tensors, ready).synchronize()
        sender.give(slot)
        sender.wait(_STAGED_AHEAD)  # so is what the GPU reaches of the CPU's

    def wait(self, most_left: int) -> None:
        """Returns when all messages but that many, and a few, have left."""
        if self._staging is None:
            self._sender.wait(most_left)
        while len(self._left) > most_left:
            self._left.popleft().result()

    def finish(self) -> None:
        """Returns when all messages have left."""
        self.wait(0)
        self._sender.finish()


class StagedReceiver:
    """Receives for a GPU through CPU memory; a thread brings each message there as it comes.

    Args:
        receiver: receives into CPU memory.
        staging: takes it to the GPU.
        device: the GPU.
    """

    posts_ahead = POSTED_AHEAD

    def __init__(self, receiver: Receiver, staging: Staging, device: torch.device) -> None:
        self._receiver = receiver
        self._staging = staging
        self._helper = Helper("link-receive", device)

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        """See `Receiver`; only the current stream waits for the copy to the GPU."""
        # Posted by the rank, in its order; the thread only waits.
        arrived = self._receiver.post(specs)
        copies = self._helper.add(lambda: self._staging.copy_in(arrived()))
        return lambda: self._staging.use(copies.result())
