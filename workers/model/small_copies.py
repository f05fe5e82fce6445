"""Copies of the small buffers of a module, so that a write nobody expected can be taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.model.norms.batchnorm import tracking_layers
from bundlerun.workers.values.module_tensors import TensorPlace

MOST_BYTES = 10**6
"""Of all copies together."""


@dataclass(frozen=True, slots=True)
class _Copy:
    of: Tensor
    version: int
    value: Tensor

    def is_current(self, place: TensorPlace) -> bool:
        return self.of is place.tensor and self.version == version(place)


class SmallCopies:
    """Copies of buffers that a checkpoint has, other than the running statistics of norms.

    Args:
        module: what has the places.
        places: of all its tensors.
    """

    def __init__(self, module: nn.Module, places: Sequence[TensorPlace]) -> None:
        norms = tracking_layers(module).values()
        # Norms get other tensors for each call: their own buffers are written by the pool only.
        lent = {
            id(t) for n in norms for t in (n.running_mean, n.running_var, n.num_batches_tracked)
        }
        self._places: dict[int, TensorPlace] = {}
        num_bytes = 0
        for i, place in enumerate(places):
            size = place.tensor.nbytes
            is_state = place.is_kept and not place.is_parameter and id(place.tensor) not in lent
            # A buffer that does not fit is passed over; smaller ones after it may still fit.
            if is_state and num_bytes + size <= MOST_BYTES:
                self._places[i] = place
                num_bytes += size
        self._copies: dict[int, _Copy] = {}

    def refresh(self) -> None:
        """Renews the copies whose buffer was written since; costs no time if none was."""
        for i, place in self._places.items():
            if i not in self._copies or not self._copies[i].is_current(place):
                value = place.tensor.detach().clone()
                self._copies[i] = _Copy(place.tensor, version(place), value)

    def written(self) -> Iterator[tuple[int, Tensor]]:
        """The places whose buffer was written or replaced since, and what was there."""
        for i, place in self._places.items():
            if not self._copies[i].is_current(place):
                yield i, self._copies[i].value


def versions(places: Sequence[TensorPlace]) -> list[int]:
    """Those of many tensors, as `version`."""
    # Not by `place.tensor`: they are hundreds, several times in each step.
    tensors: list[Any] = [place.owner[place.key] for place in places]
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # of torch: one of them counts no writes
        return [version(place) for place in places]


def version(place: TensorPlace) -> int:
    """The version of the tensor there, which each write to it raises.

    Raises:
        ConfigError: its writes are not counted.
    """
    if place.tensor.is_inference():
        raise ConfigError(
            f"the model makes {place.name!r} under torch.inference_mode(), where nobody can see "
            "what writes to it; use torch.no_grad() there"
        )
    return place.tensor._version
