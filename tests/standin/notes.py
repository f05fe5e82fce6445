"""What the members of a communicator tell each other about an operation.

when it is begun    what it is, on which device, what else each has begun: they must fit together
when it is done     what it depends on, so that a receive that was begun too early is noticed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tests.standin.queues import Knowledge

_BYTES = 4096
_TAG = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What a member is about to do.

    Args:
        what: the operation with its shape and type.
        number: how many operations it has begun in this communicator.
        others: the same for all its communicators with collectives, by name.
        device: where it runs.
    """

    what: str
    number: int
    others: Mapping[str, int]
    device: str

    def unlike(self, other: Intent, *, may_share: bool) -> tuple[str, str] | None:
        """Why the two do not fit together: in two words, and with what.

        Args:
            other: of another member.
            may_share: whether both may be on one device.
        """
        if other.device == self.device and not may_share:
            return "two ranks of one device", f"Duplicate GPU detected: {self.device}"
        if (other.what, other.number) != (self.what, self.number):
            told = f"{self.number}: {self.what}, the other {other.number}: {other.what}"
            return "another order", f"they do not do the same: one does {told}"
        shared = {*self.others} & {*other.others}
        differ = sorted(name for name in shared if self.others[name] != other.others[name])
        if differ:
            return "another order", f"they have begun other collectives in another order: {differ}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What an operation depends on.

    Args:
        process: whose it is.
        given: things that this process had given its streams with it.
        knows: the same of other processes.
    """

    process: str
    given: int
    knows: Knowledge = field(default_factory=dict)


Note = Intent | News


def exchanged(
    gloo: Any, own: Note, make: Callable[..., Any], *, index: int, size: int, way: tuple[str, int]
) -> dict[int, Any]:
    """The notes of the other members that take part, by their index.

    Args:
        gloo: carries them.
        own: of this member.
        make: makes one of its fields.
        index: of this member.
        size: number of members.
        way: "send" or "recv" and the other one's index; else all tell all.
    """
    text = json.dumps(asdict(own)).encode()
    assert len(text) <= _BYTES, f"a note of {len(text)} bytes"
    mine = torch.frombuffer(bytearray(text.ljust(_BYTES)), dtype=torch.uint8)
    name, peer = way
    if name == "send":
        gloo.send([mine], peer, _TAG).wait()
        return {}
    if name == "recv":
        gloo.recv([mine], peer, _TAG).wait()
        return {peer: make(**json.loads(mine.numpy().tobytes()))}
    every = [torch.empty_like(mine) for _ in range(size)]
    _gather(gloo, every, mine)
    found = {i: make(**json.loads(data.numpy().tobytes())) for i, data in enumerate(every)}
    return {i: note for i, note in found.items() if i != index}


def _gather(gloo: Any, every: list[torch.Tensor], mine: torch.Tensor) -> None:
    options = torch._C._distributed_c10d.AllgatherOptions()
    gloo.allgather([every], [mine], options).wait()
