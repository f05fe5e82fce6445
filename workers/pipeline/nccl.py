"""Messages between GPUs through NCCL.

NCCL lets each operation wait for the stream that is current where it is started, and `wait()` of
its handle makes the current stream wait for it; the rank itself waits for neither.

A receive is a kernel that occupies the GPU until its message is there, and much of what CUDA does
waits for all kernels that were started before: it loads a kernel at its first use, takes memory
from the driver, has few queues. So a receive is posted when the rank comes to it and no earlier:
all that its message waits for on this GPU has been started by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.pipeline.message import Specs, specs_of
from bundlerun.workers.rank.comm import Group

_SENDER, _RECEIVER = 0, 1
_HELLO = torch.zeros(1)


class _Sent(NamedTuple):
    tensors: list[Tensor]
    works: list[Work]

    @property
    def has_left(self) -> bool:
        return all(work.is_completed() for work in self.works)


class NcclSender:
    """The sending end.

    Collective: both ends, because NCCL connects two ranks when they first talk. Left to the first
    messages, that would be two ranks that wait on two links for each other.

    Args:
        group: sender first, receiver second.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._left: deque[_Sent] = deque()
        self._device = group.device
        self.send([_HELLO])

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Sends what the current stream will have made by then."""
        while self._left and self._left[0].has_left:
            self._left.popleft()
        # Targets are in CPU memory as the data gave them, where NCCL cannot get at them.
        ready = [door.placed(t.contiguous(), self._device) for t in tensors]
        works = [work for t in ready for work in self._group.send(t, _RECEIVER)]
        # Held until they have left: else the memory would be given to other tensors meanwhile.
        self._left.append(_Sent(ready, works))

    def wait(self, most_left: int) -> None:
        """Returns when all messages but that many have left."""
        while len(self._left) > most_left:
            # Not the compute stream: what it is given next has nothing to wait for here.
            with door.on_stream(self._device, "link"):
                for work in self._left.popleft().works:
                    work.wait()
                door.finish(self._device)

    def finish(self) -> None:
        """Returns when all messages have left."""
        self.wait(0)


class NcclReceiver:
    """The receiving end.

    Collective with the sending end, for the same reason.

    Args:
        group: sender first, receiver second.
        device: where tensors are received.
    """

    posts_ahead = 0

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group = group
        self._device = device
        self.post(specs_of([_HELLO]))()

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        """Gets ready for the next message, and gives a function that waits for it.

        That function lets the current stream wait, not the rank.
        """
        # Memory of a stream that is idle: were it the compute stream's, NCCL would have to wait for
        # all compute before it, because that may still use the memory.
        with door.on_stream(self._device, "link"):
            buffers = [torch.empty(s.shape, dtype=s.dtype, device=self._device) for s in specs]
            works = [work for b in buffers for work in self._group.receive(b, _SENDER)]
        return partial(self._arrived, buffers, works)

    def _arrived(self, buffers: list[Tensor], works: list[Work]) -> list[Tensor]:
        for work in works:
            work.wait()
        current = door.current_stream(self._device)
        # The link's stream owns the memory and would reuse it while the current stream still reads.
        for buffer in buffers:
            door.used_by(buffer, current)
        return buffers
