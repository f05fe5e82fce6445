"""Hands a sealed piece from one rank to another, which has it checked and sealed before it answers.

sender      lengths | label and layout, JSON | data, in parts | checksum |
receiver                                            has come ...         | kept, or not

Where a piece is to take a share of the link only, the receiver tells of each part that it has come.
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
from bundlerun.workers.snapshot.link_share import LinkShare
from bundlerun.workers.snapshot.piece import Label, Layout, Spec
from bundlerun.workers.snapshot.slot import Slot

_AT_ONCE_BYTES = 32 << 20
"""What is on the way at one time, in the messages that `Group` cuts it into."""
_NUM_LENGTHS = 3
"""Bytes of the text and of the data, and of the parts that are told to have come."""

Place = Callable[[Label, Layout], Slot | None]
"""Where a piece is to go; None: there is no room for it."""


def send_piece(group: Group, to: int, slot: Slot | None, link: LinkShare | None = None) -> bool:
    """Sends what a slot has; whether the other has kept it.

    Args:
        group: of the two.
        to: the other's address in it.
        slot: sealed; None: there is nothing to send this time.
        link: how much of the link it may take; None: all of it.
    """
    link = link or LinkShare()
    if slot is None or slot.label is None:
        wait_all(group.send(torch.zeros(_NUM_LENGTHS, dtype=torch.int64), to))
        return False
    told = {"label": asdict(slot.label), "tensors": slot.layout.specs}
    text = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8).copy()
    lengths = [len(text), slot.layout.num_bytes, link.part_bytes]
    wait_all(group.send(torch.tensor(lengths), to))
    wait_all(group.send(torch.from_numpy(text), to))
    send_data(group, to, slot.data, slot.data_sum, link)
    answer = torch.zeros(1, dtype=torch.uint8)
    wait_all(group.receive(answer, to))
    return bool(answer.item())


def receive_piece(group: Group, source: int, place: Place) -> Label | None:
    """Takes a piece, and seals it where `place` says; None: it was not kept, or there was none.

    Raises:
        RuntimeError: it came damaged, or the other is gone.
    """
    lengths = torch.zeros(_NUM_LENGTHS, dtype=torch.int64)
    wait_all(group.receive(lengths, source))
    text_bytes, data_bytes, part_bytes = lengths.tolist()
    if not text_bytes:
        return None
    text = torch.zeros(text_bytes, dtype=torch.uint8)
    wait_all(group.receive(text, source))
    told = json.loads(text.numpy().tobytes())
    label, layout = label_of(told["label"]), Layout.of(specs_of(told["tensors"]))
    slot = place(label, layout)
    if slot is None:
        # The sender is on its way: what nobody keeps has to be taken all the same.
        at_once = part_bytes or _AT_ONCE_BYTES
        nothing = torch.empty(min(data_bytes, at_once), dtype=torch.uint8)
        for begin in range(0, data_bytes, at_once):
            wait_all(group.receive(nothing[: data_bytes - begin], source))
            _tell_come(group, source, part_bytes)
        wait_all(group.receive(torch.zeros(CHECKSUM_BYTES, dtype=torch.uint8), source))
    else:
        take_data(group, source, slot, label, part_bytes)
    wait_all(group.send(torch.tensor([slot is not None], dtype=torch.uint8), source))
    return None if slot is None else label


def send_data(
    group: Group, to: int, data: Tensor, data_sum: bytes, link: LinkShare | None = None
) -> None:
    """Sends the tensors of a piece, and their checksum; `link`: see `send_piece`."""
    part_bytes = link.part_bytes if link else 0
    for part in _parts(data, part_bytes):
        if link:
            link.begins()
        wait_all(group.send(part, to))
        if link and part_bytes:
            wait_all(group.receive(torch.zeros(1, dtype=torch.uint8), to))
            link.sent(part.numel())
    # Of its own: what it was made from may not be written to.
    told = torch.from_numpy(np.frombuffer(data_sum, dtype=np.uint8).copy())
    wait_all(group.send(told, to))


def take_data(group: Group, source: int, slot: Slot, label: Label, part_bytes: int = 0) -> None:
    """Takes what `send_data` sends into a slot, checks and seals it.

    Args:
        part_bytes: of the parts that are told to have come; 0: none is.

    Raises:
        RuntimeError: it came damaged, or the other is gone.
    """
    # Sealed only when the sum is right: a death here leaves a file that counts for nothing.
    slot.open()
    for part in _parts(slot.data, part_bytes):
        wait_all(group.receive(part, source))
        _tell_come(group, source, part_bytes)
    told = torch.zeros(CHECKSUM_BYTES, dtype=torch.uint8)
    wait_all(group.receive(told, source))
    data_sum = told.numpy().tobytes()
    if checksum(slot.bytes) != data_sum:
        raise RuntimeError(f"a piece of the snapshot of step {label.step} came damaged")
    slot.seal(label, data_sum)


def _tell_come(group: Group, source: int, part_bytes: int) -> None:
    if part_bytes:
        wait_all(group.send(torch.zeros(1, dtype=torch.uint8), source))


def _parts(data: Tensor, part_bytes: int) -> Iterator[Tensor]:
    return (part for part in data.split(part_bytes or _AT_ONCE_BYTES) if part.numel())


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
