"""What each rank has for itself: random numbers, buffers, objects that differ between ranks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundlerun.workers.device import accelerator as door
from bundlerun.workers.own.objects import Objects, Packing, Stateful, unpacked

_RANDOM = "random"
_BUFFERS = "buffers/"


class EachRank:
    """The state of one rank that no other has.

    Args:
        objects: of the user, see `protect`.
        alike: what all ranks have alike, but for buffers of modules.
        device: whose random numbers count, beside those of the CPU.
    """

    def __init__(self, objects: Sequence[Stateful], alike: Objects, device: torch.device) -> None:
        self._objects = Objects(objects)
        self._alike = alike
        self._packing = Packing()
        self._device = device
        self._taken: dict[str, Tensor] = {}

    def take(self, alike: Mapping[str, Tensor]) -> None:
        """Copies it as it is now.

        Args:
            alike: what `Objects.state` has just given, which has copied the buffers.
        """
        found = self._packing.packed(_RANDOM, random_states(self._device))
        found |= {key: value.clone() for key, value in self._objects.state().items()}
        found |= {_BUFFERS + k: alike[k] for k in self._alike.buffers() if k in alike}
        self._taken = found

    def taken(self) -> dict[str, Tensor]:
        """What was copied last."""
        return self._taken

    def check(self) -> None:
        """Raises ConfigError for what no checkpoint could hold."""
        self._objects.check()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `taken` gave.

        Raises:
            CheckpointError: it is of other objects.
        """
        self._objects.load(tensors)
        with torch.no_grad():
            for key, buffer in self._alike.buffers().items():
                kept = tensors.get(_BUFFERS + key)
                if kept is not None and kept.shape == buffer.shape:
                    buffer.copy_(kept)
        # Last: what loads may draw numbers.
        set_random_states(self._device, unpacked(_RANDOM, tensors))


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the generators of torch, of `device`, of Python and of numpy."""
    cpu, *own = door.random_state(device)
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "cpu": cpu,
        **{f"device{number}": state for number, state in enumerate(own)},
        "python": torch.tensor(words),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "rest": [version, gauss, str(kind), *rest],
    }


def set_random_states(device: torch.device, states: Mapping[str, Any]) -> None:
    """Lets the generators go on from there; one of another kind of device stays as it is."""
    own = [states[key].clone() for key in sorted(states) if key.startswith("device")]
    door.set_random_state(device, [states["cpu"].clone(), *(own if door.is_gpu(device) else [])])
    version, gauss, kind, *rest = states["rest"]
    random.setstate((version, tuple(states["python"].tolist()), gauss))
    np.random.set_state((kind, states["numpy"].numpy().astype(np.uint32), *rest))
