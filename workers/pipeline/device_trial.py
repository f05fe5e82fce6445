"""Whether two ranks reach each other's memory of a GPU, found out with three messages.

Each is made late, after work that takes a GPU about a millisecond, so that a mark that nothing
waits for is noticed by what arrives. They use both slots, and one of them twice. Of the first
message the receiver's process asks for the mark before any stream of it waits: a mark that never
comes is refused then, within a limit.

Whoever finds that it does not work closes its bells, which the other end hears at once, and both
take another way. One line in the log says why.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bundlerun.launcher.ranks.fault import PeerGoneError
from bundlerun.workers.device.interface import Event
from bundlerun.workers.device.shared_memory import CannotShareError
from bundlerun.workers.pipeline.device_slots import (
    NUM_CHANNELS,
    PAGE_BYTES,
    DeviceSlotReceiver,
    DeviceSlotSender,
)
from bundlerun.workers.pipeline.message import specs_of
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.node_memory import NodeMemory

log = logging.getLogger(__name__)

_End = TypeVar("_End", DeviceSlotSender, DeviceSlotReceiver)

LIMIT_S = 10.0
"""Longest wait for a message of the trial, once it is said to be there, seconds."""
_POLL_S = 0.0005
_NUM_MESSAGES = 3
_NUM_NUMBERS = 1 << 16
_NUM_LATE, _SIZE_LATE = 200, 1 << 18
"""Operations before each message, and numbers in each of them."""


def try_sender(group: Group, device: torch.device) -> DeviceSlotSender | None:
    """The sending end, if messages arrive; else None at both ends.

    Collective with `try_receiver`.

    Args:
        group: sender first, receiver second.
        device: the GPU of this rank.
    """
    return _tried(group, functools.partial(_sent, group, device))


def try_receiver(group: Group, device: torch.device) -> DeviceSlotReceiver | None:
    """The receiving end; see `try_sender`."""
    return _tried(group, functools.partial(_received, group, device))


def _tried(group: Group, attempt: Callable[[NodeMemory], _End]) -> _End | None:
    memory = NodeMemory.connect(group, PAGE_BYTES, num_channels=NUM_CHANNELS)
    if memory is None:
        _say("the system lets them share neither memory nor bells")
        return None
    end, refusal = None, ""
    try:
        end = attempt(memory)
    except PeerGoneError:
        refusal = _HEARD
    except RuntimeError as exc:
        refusal = str(exc).splitlines()[0] or type(exc).__name__
    if refusal:
        memory.close()
    # An end that is really gone ends this one here.
    refusals = [found for found in group.all_gather_json(refusal) if found]
    if not refusals:
        assert end is not None
        group.at_close(end.finish)
        return end
    if not refusal:
        memory.close()
    _say(next((why for why in refusals if why != _HEARD), refusals[0]))
    return None


_HEARD = "the other end refuses"


@functools.cache
def _say(why: str) -> None:
    # Once, however many links a rank has.
    log.warning("messages between stages go through CPU memory, not from GPU to GPU: %s", why)


def _sent(group: Group, device: torch.device, memory: NodeMemory) -> DeviceSlotSender:
    end = DeviceSlotSender(memory, device, _purpose(group))
    for number in range(_NUM_MESSAGES):
        end.send([_late(number, device)])
    end.finish()
    return end


def _received(group: Group, device: torch.device, memory: NodeMemory) -> DeviceSlotReceiver:
    end = DeviceSlotReceiver(memory, device, _purpose(group))
    wanted = torch.arange(_NUM_NUMBERS, device=device)
    for number in range(_NUM_MESSAGES):
        slot = end.next_slot()
        if not number:
            _reach(end.copied[slot], "the other process's mark")
        copies = end.copy_out(slot, specs_of([wanted]))
        _reach(copies.done, "a copy from the memory of both")
        (found,) = copies.use(device)
        num_wrong = int((found != wanted + number).sum())
        if num_wrong:
            raise CannotShareError(f"message {number} has {num_wrong} wrong numbers")
    return end


def _purpose(group: Group) -> str:
    return f"link {group.name}"


def _late(number: int, device: torch.device) -> Tensor:
    """A message that takes a while to be made."""
    busy = torch.zeros(_SIZE_LATE, device=device)
    for _ in range(_NUM_LATE):
        busy.add_(1)
    done = (busy[:1] - _NUM_LATE).to(torch.int64)
    return torch.arange(_NUM_NUMBERS, device=device) + done + number


def _reach(event: Event, what: str) -> None:
    """Waits for a mark, which may never come."""
    deadline = time.monotonic() + LIMIT_S
    while not event.query():
        if time.monotonic() > deadline:
            raise CannotShareError(f"{what} has not come within {LIMIT_S:g} s")
        time.sleep(_POLL_S)
