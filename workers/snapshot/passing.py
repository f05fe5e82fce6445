"""Hands a sealed piece from one rank to another, which has it checked and sealed before it answers.

sender      lengths | label and layout, JSON | data, in parts | checksum |
receiver                                                                 | kept, or not
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.snapshot.checksum import CHECKSUM_BYTES, checksum
from bundlerun.workers.snapshot.piece import Label, Layout, Spec
from bundlerun.workers.snapshot.slot import Slot

_AT_ONCE_BYTES = 32 << 20
"""What is on the way at one time, in the messages that `Group` cuts it into."""

Place = Callable[[Label, Layout], Slot | None]
"""Where a piece is to go; None: there is no room for it."""


def send_piece(group: Group, to: int, slot: Slot | None) -> bool:
    """Sends what a slot has; whether the other has kept it.

    Args:
        group: of the two.
        to: the other's address in it.
        slot: sealed; None: there is nothing to send this time.
    """
    if slot is None or slot.label is None:
        wait_all(group.send(torch.zeros(2, dtype=torch.int64), to))
        return False
    told = {"label": asdict(slot.label), "tensors": slot.layout.specs}
    text = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8).copy()
    wait_all(group.send(torch.tensor([len(text), slot.layout.num_bytes]), to))
    wait_all(group.send(torch.from_numpy(text), to))
    send_data(group, to, slot.data, slot.data_sum)
    answer = torch.zeros(1, dtype=torch.uint8)
    wait_all(group.receive(answer, to))
    return bool(answer.item())


def receive_piece(group: Group, source: int, place: Place) -> Label | None:
    """Takes a piece, and seals it where `place` says; None: it was not kept, or there was none.

    Raises:
        RuntimeError: it came damaged, or the other is gone.
    """
    lengths = torch.zeros(2, dtype=torch.int64)
    wait_all(group.receive(lengths, source))
    text_bytes, data_bytes = lengths.tolist()
    if not text_bytes:
        return None
    text = torch.zeros(text_bytes, dtype=torch.uint8)
    wait_all(group.receive(text, source))
    told = json.loads(text.numpy().tobytes())
    label, layout = label_of(told["label"]), Layout.of(specs_of(told["tensors"]))
    slot = place(label, layout)
    if slot is None:
        # The sender is on its way: what nobody keeps has to be taken all the same.
        nothing = torch.empty(min(data_bytes, _AT_ONCE_BYTES), dtype=torch.uint8)
        for begin in range(0, data_bytes, _AT_ONCE_BYTES):
            wait_all(group.receive(nothing[: data_bytes - begin], source))
        wait_all(group.receive(torch.zeros(CHECKSUM_BYTES, dtype=torch.uint8), source))
    else:
        take_data(group, source, slot, label)
    wait_all(group.send(torch.tensor([slot is not None], dtype=torch.uint8), source))
    return None if slot is None else label


def send_data(group: Group, to: int, data: Tensor, data_sum: bytes) -> None:
    """Sends the tensors of a piece, and their checksum."""
    for part in _parts(data):
        wait_all(group.send(part, to))
    # Of its own: what it was made from may not be written to.
    told = torch.from_numpy(np.frombuffer(data_sum, dtype=np.uint8).copy())
    wait_all(group.send(told, to))


def take_data(group: Group, source: int, slot: Slot, label: Label) -> None:
    """Takes what `send_data` sends into a slot, checks and seals it.

    Raises:
        RuntimeError: it came damaged, or the other is gone.
    """
    # Sealed only when the sum is right: a death here leaves a file that counts for nothing.
    slot.open()
    for part in _parts(slot.data):
        wait_all(group.receive(part, source))
    told = torch.zeros(CHECKSUM_BYTES, dtype=torch.uint8)
    wait_all(group.receive(told, source))
    data_sum = told.numpy().tobytes()
    if checksum(slot.bytes) != data_sum:
        raise RuntimeError(f"a piece of the snapshot of step {label.step} came damaged")
    slot.seal(label, data_sum)


def _parts(data: Tensor) -> Iterator[Tensor]:
    return (part for part in data.split(_AT_ONCE_BYTES) if part.numel())


def wait_all(works: Iterable[Work]) -> None:
    """Returns when all are done."""
    for work in works:
        work.wait()


def label_of(values: Mapping[str, Any]) -> Label:
    """A label from plain values."""
    return Label(**{**values, "progress": Progress(**values["progress"])})


def specs_of(values: Mapping[str, Any]) -> dict[str, Spec]:
    """The tensors of a layout from plain values."""
    return {name: Spec(dtype, tuple(shape)) for name, (dtype, shape) in values.items()}
