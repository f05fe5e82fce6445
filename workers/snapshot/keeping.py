"""The snapshots that a run goes back to where its newest states turn out to be corrupted.

    steps        0        42        84       126
    slot a       |-- is looked at --|== verified ==|-- is looked at ...
    slot b                 |-- is looked at --|== verified ==|

Such a one is kept until the next has been verified: when it is written, all of the state was looked
at since the one before. They are pieces like any other, so a restore finds them by what they say.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.piece import Label
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import read_label
from bundlerun.workers.snapshot.turns import Turns

log = logging.getLogger(__name__)

_MARK = "-verified"


def is_due(step: int, every: int) -> bool:
    """Pure: whether the state after `step` steps is one of those; 0: none is."""
    return every > 0 and step % every == 0


class Keeping:
    """The slots of one rank for these.

    Args:
        room: where they are.
        token: of the round.
        role: of the rank in it.
        device: of the state.
        every: steps from one to the next; 0: there are none.
    """

    def __init__(
        self, room: SnapshotRoom, token: str, role: str, device: torch.device, every: int
    ) -> None:
        self._room = room
        self._token = token
        self._turns = Turns(room, token, f"{role}{_MARK}", device)
        self._every = every
        self._num_written = 0
        self._is_settled = False
        """Whether nothing of earlier rounds is left."""

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be kept."""
        return is_due(step, self._every)

    def write(self, label: Label, tensors: Mapping[str, Tensor], copy: DeviceCopy) -> None:
        """Writes this rank's share over the older one; without room, says so and keeps none."""
        if not self.is_due(label.step):
            return
        try:
            self._turns.write(label, tensors, copy)
            self._num_written += 1
        except OSError as exc:
            self._every = 0
            log.warning(
                "no room to keep a verified state in memory: %s; where the state turns out to be "
                "corrupted, the run goes back to a checkpoint",
                exc.strerror,
            )

    def forget(self, verified: int) -> None:
        """Removes those of earlier rounds that are not needed any more; by one rank of the node.

        Args:
            verified: finished steps of the newest state that is, as this round began.
        """
        if self._is_settled:
            return
        others = []
        for path in self._room.pieces():
            if is_kept(path.name) and not path.name.startswith(f"{self._token}."):
                found = read_label(path)
                step = -1 if found is None else found[0].step
                others.append((step, path))
        best = max((step for step, _ in others if step <= verified), default=-1)
        for step, path in others:
            # Once this round has two, the older of them is verified.
            if step != best or self._num_written >= 2:
                path.unlink(missing_ok=True)
        self._is_settled = not others

    def close(self) -> None:
        """Takes the memory back from the GPU; the pieces stay."""
        self._turns.close()


def is_kept(name: str) -> bool:
    """Whether a piece of that file name is one of these."""
    return f"{_MARK}-" in name
