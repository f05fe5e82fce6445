"""Anything nested as tensors, by how their names end: a form in JSON, and the tensors in it.

#form          JSON bytes, see `workers.values.nest`, padded with spaces, which JSON ignores
#0  #1  ...    the tensors, in order
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.layout.rounding import rounded_up
from bundlerun.workers.values.nest import built, form_of, leaf_values, mapped

FORM = "#form"
_ROOM = 64
"""A form's bytes are a multiple of it: the layout of a snapshot changes less often."""


def _usual_room(num_bytes: int) -> int:
    return rounded_up(num_bytes, _ROOM)


def encoded(
    value: object, place: str, room: Callable[[int], int] = _usual_room
) -> dict[str, Tensor]:
    """A nested value as tensors, detached but not copied.

    Args:
        value: tensors, numbers and texts, in dicts, lists and tuples.
        place: what it is, for the message.
        room: the bytes that a form of so many bytes takes.

    Raises:
        CheckpointError: something in it is none of these.
    """
    value = mapped(_plain, value)
    try:
        text = json.dumps(form_of(value, lambda item: isinstance(item, Tensor))).encode()
    except TypeError as exc:
        raise CheckpointError(
            f"cannot keep {place}: {exc}, which is neither a tensor nor a number; keep tensors and "
            "numbers there, in lists, tuples and dicts as you like"
        ) from exc
    # frombuffer wants memory that can be written.
    padded = bytearray(text.ljust(room(len(text))))
    found = {FORM: torch.frombuffer(padded, dtype=torch.uint8)}
    tensors = [item for item in leaf_values(value) if isinstance(item, Tensor)]
    return found | {f"#{number}": tensor.detach() for number, tensor in enumerate(tensors)}


def decoded(tensors: Mapping[str, Tensor], base: str) -> Any:  # noqa: ANN401 (what was encoded)
    """What `encoded` was given, its tensors as they are in `tensors`.

    Args:
        tensors: by name.
        base: what the names begin with, up to the #.
    """
    form = json.loads(bytes(tensors[base + FORM].tolist()))
    # Lazily: `built` takes as many as the form has leaves.
    return built(form, (tensors[f"{base}#{number}"] for number in range(len(tensors))))


def _plain(value: object) -> object:
    """A numpy scalar as the number that it is."""
    return value.item() if isinstance(value, np.generic) else value
