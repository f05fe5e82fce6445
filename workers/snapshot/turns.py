"""Two slots, written alternately: while one is written, the other has the piece before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bundlerun.workers.device.host_memory import Registration
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.piece import Label, Layout, Spec, longest_first
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import Slot

Prepare = Callable[[Slot], Registration | None]


class Turns:
    """The slots of one writer.

    Args:
        room: where they are made.
        token: the round.
        role: of the writer in the round.
        device: where the tensors are.
    """

    def __init__(self, room: SnapshotRoom, token: str, role: str, device: torch.device) -> None:
        self._room = room
        self._token = token
        self._role = role
        self._device = device
        self._slots: list[Slot | None] = [None, None]
        self._registered: list[Registration | None] = [None, None]
        self._turn = 0

    @property
    def newest(self) -> Slot | None:
        """The one that was written last."""
        return self._slots[1 - self._turn]

    def write(self, label: Label, tensors: Mapping[str, Tensor], copy: DeviceCopy) -> None:
        """Writes a piece over the older one.

        Raises:
            OSError: there is no room.
            CheckpointError: none for the label.
        """
        sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
        specs = {name: Spec.of(tensors[name]) for name in longest_first(sizes)}
        copy.write(self.older(specs, copy.prepare), label, tensors)
        self.written()

    def older(self, specs: Mapping[str, Spec], prepare: Prepare | None = None) -> Slot:
        """The slot that is to be written next, with room for these tensors.

        Args:
            specs: in the order in which they are to lie there.
            prepare: is called for a new slot.

        Raises:
            OSError: there is no room.
        """
        slot = self._slots[self._turn]
        # The optimizer's state appears with its first step: the layout of a slot may change once.
        if slot is None or slot.layout.specs != specs:
            slot = self._make(self._turn, specs, prepare)
        other = 1 - self._turn
        if self._slots[other] is None:
            # With the first, as copies of other nodes' pieces may take what room is left.
            self._make(other, specs, prepare)
        return slot

    def _make(self, turn: int, specs: Mapping[str, Spec], prepare: Prepare | None) -> Slot:
        before = self._slots[turn]
        if before is not None:
            self._end_registration(turn)
            # First, as both may not fit at the same time.
            before.remove()
        self._slots[turn] = None
        role = f"{self._role}-{'ab'[turn]}"
        # So that the room can refuse now if the second slot will not fit either.
        left = self._slots.count(None)
        slot = self._room.make_slot(self._token, role, Layout.of(specs), num_slots=left)
        self._slots[turn] = slot
        if prepare is not None:
            self._registered[turn] = prepare(slot)
        return slot

    def written(self) -> None:
        """Says that the piece of `older` is sealed: the other one is the older now."""
        self._turn = 1 - self._turn

    def close(self) -> None:
        """Takes the memory back from the GPU; the pieces stay."""
        for turn in range(len(self._slots)):
            self._end_registration(turn)

    def _end_registration(self, turn: int) -> None:
        registered, self._registered[turn] = self._registered[turn], None
        if registered is not None:
            registered.end()
