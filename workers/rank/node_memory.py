"""Memory that ranks of one node share, and bells with which they call each other.

The memory is a memfd and a bell is a pipe:

    [1] each makes its own, and the ends at which the others ring
    [2] all tell all where theirs are      [3] each opens those of the others through /proc/PID/fd
    [4] all have, or all do without

So nothing has a name that could outlive its process, the size of /dev/shm does not matter, and
whoever waits for a rank that dies knows at once, because its end of the pipe closes.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import select
from dataclasses import dataclass, field
from itertools import product
from typing import Self

import psutil
import torch
from torch import Tensor

from bundlerun.launcher.ranks.fault import PeerGoneError
from bundlerun.launcher.run_folder.holder import this_machine
from bundlerun.workers.rank.comm import Group

log = logging.getLogger(__name__)

Bell = tuple[int, int]
"""A peer's index in the group, and a channel."""

_NOTE_BYTES = 4
"""That few are written and read in one piece, whatever threads do."""


@dataclass(slots=True)
class _Files:
    """The descriptors of one `NodeMemory`, and its views of memory."""

    memory: list[Tensor] = field(default_factory=list)
    hears: dict[Bell, int] = field(default_factory=dict)
    rings: dict[Bell, int] = field(default_factory=dict)
    offered: list[int] = field(default_factory=list)
    """What peers open; only until they have done so."""

    def close_offered(self) -> None:
        for descriptor in self.offered:
            os.close(descriptor)
        self.offered.clear()

    def close(self) -> None:
        self.close_offered()
        for ends in (self.hears, self.rings):
            for descriptor in ends.values():
                os.close(descriptor)
            ends.clear()


class NodeMemory:
    """One piece of memory of each member of a group, readable and writable by all members.

    Made by `connect`. Bells are counted: each `ring` ends one `wait`.
    """

    def __init__(self, group: Group, files: _Files) -> None:
        self.index = group.index
        self._ranks = group.ranks
        self._timeout_s = group.timeout_s
        self._files = files
        self._polls = {bell: _poll_of(fd) for bell, fd in files.hears.items()}

    @classmethod
    def connect(cls, group: Group, num_bytes: int, *, num_channels: int = 1) -> Self | None:
        """Shares `num_bytes` of zeros of each member; None on all members if one of them cannot.

        Collective: every rank of `group`, which talks through CPU memory. Members cannot share if
        they do not see each other's processes, if memory is short, or if the system forbids it.
        """
        # [1] A refusal is no error here: the others have to hear of it, or they would wait.
        files = _Files()
        try:
            offer = _offer(group, files, num_bytes, num_channels)
        except OSError as exc:
            log.debug("no memory for the other ranks of this node: %s", exc.strerror or exc)
            offer = None
        # [2]
        offers = group.all_gather_json(offer)
        is_open = all(offers) and len({o["space"] for o in offers}) == 1
        # [3] Only in one space of processes does a number mean the same process to all.
        is_open = is_open and _open_peers(group, files, offers)
        # [4]
        if not all(group.all_gather_json(is_open)):
            files.close()
            return None
        # The end of a peer has to be the only one, or its death would not close the pipe.
        files.close_offered()
        return cls(group, files)

    @property
    def memory(self) -> list[Tensor]:
        """The memory of each member, own included, as flat uint8 tensors."""
        return self._files.memory

    @property
    def own(self) -> Tensor:
        """The memory of this rank."""
        return self._files.memory[self.index]

    def ring(self, peer: int, channel: int = 0, note: int = 0) -> None:
        """Ends one `wait` of a peer, which returns `note`, a number below 2**32.

        Raises:
            PeerGoneError: the peer is gone.
        """
        try:
            os.write(self._files.rings[peer, channel], note.to_bytes(_NOTE_BYTES))
        except BrokenPipeError:
            raise PeerGoneError(f"rank {self._ranks[peer]} on this node is gone") from None

    def wait(self, peer: int, channel: int = 0) -> int:
        """Waits until the peer has rung, and returns its note.

        Raises:
            PeerGoneError: the peer is gone.
            RuntimeError: it did not ring within the group's timeout.
        """
        if not self._polls[peer, channel].poll(self._timeout_s * 1000):
            raise RuntimeError(
                f"rank {self._ranks[peer]} on this node did not answer in {self._timeout_s} s"
            )
        # Readable with nothing to read: nobody has the other end open any more.
        note = os.read(self._files.hears[peer, channel], _NOTE_BYTES)
        if not note:
            raise PeerGoneError(f"rank {self._ranks[peer]} on this node is gone")
        return int.from_bytes(note)

    def has_rung(self, peer: int, channel: int = 0) -> bool:
        """Whether `wait` would not wait."""
        return bool(self._polls[peer, channel].poll(0))

    def close(self) -> None:
        """Lets the peers know that nobody rings here any more; views of memory stay valid."""
        self._polls.clear()
        self._files.close()


def _poll_of(descriptor: int) -> select.poll:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll


def _offer(group: Group, files: _Files, num_bytes: int, num_channels: int) -> dict[str, object]:
    """Makes this rank's memory and bells, and returns where peers find them."""
    memory = os.memfd_create("bundlerun")
    files.offered.append(memory)
    # The kernel promises any amount, and kills a process once too much of it is used.
    if num_bytes > psutil.virtual_memory().available:
        raise OSError(errno.ENOMEM, f"no {num_bytes} bytes of memory")
    os.ftruncate(memory, num_bytes)  # pages come with their first use
    bells = []
    for peer, channel in product(range(group.size), range(num_channels)):
        if peer != group.index:
            files.hears[peer, channel], end = os.pipe()
            files.offered.append(end)
            bells.append((peer, channel, end))
    return {
        "space": this_machine(),
        "pid": os.getpid(),
        "memory": memory,
        "num_bytes": num_bytes,
        "bells": bells,
    }


def _open_peers(group: Group, files: _Files, offers: list[dict[str, object]]) -> bool:
    """Opens what the peers offer; returns whether the system let it."""
    try:
        for peer, offer in enumerate(offers):
            folder = f"/proc/{offer['pid']}/fd"
            files.memory.append(
                _mapped(f"{folder}/{offer['memory']}", int(str(offer["num_bytes"])))
            )
            bells = offer["bells"]
            assert isinstance(bells, list)
            # Of a peer's bells, the ones that this rank rings.
            for rung_by, channel, end in bells:
                if rung_by == group.index:
                    flags = os.O_WRONLY | os.O_CLOEXEC
                    files.rings[peer, channel] = os.open(f"{folder}/{end}", flags)
    except OSError:
        return False
    return True


def _mapped(path: str, num_bytes: int) -> Tensor:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return torch.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=torch.uint8)
    finally:
        os.close(descriptor)
