"""Copies between the device and the CPU, late where a GPU's would be.

from               to                 asked not to wait      else
the device         the device         late                   late
the device         pinned memory      late                   the process waits
the device         other memory       the process waits      the process waits
pinned memory      the device         late                   the process waits
other memory       the device         taken at once, late    the process waits
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.standin.device import Device
from tests.standin.host import HostMemory
from tests.standin.kernels import Kernels, is_ours


class Copies:
    """The copies of a device.

    Args:
        device: it.
        host: memory of the CPU that it reaches by itself.
        kernels: make memory.
    """

    def __init__(self, device: Device, host: HostMemory, kernels: Kernels) -> None:
        self._device = device
        self._host = host
        self._kernels = kernels

    def copy(self, source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        """`aten::_copy_from`: fills `target`, of the same shape or wider."""
        sides = [t for t in (source, target) if is_ours(t)]
        plain = [self._device.plain(t) if is_ours(t) else t.detach() for t in (source, target)]
        is_reached = all(is_ours(t) or self._host.is_pinned(t) for t in (source, target))
        if non_blocking and not is_reached and not is_ours(source):
            plain[0] = plain[0].clone()
        uses = [self._device.use(t, writes=t is target) for t in sides]

        def work() -> None:
            with torch._C._AutoDispatchBelowAutograd():  # type: ignore[attr-defined]
                plain[1].copy_(plain[0])

        self._device.give("copy", work, uses)
        is_late = len(sides) == 2 or (non_blocking and (is_reached or is_ours(target)))
        if not is_late:
            self._device.wait_current()
        return target

    def to_copy(
        self,
        source: Tensor,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        non_blocking: bool = False,
        memory_format: torch.memory_format | None = None,
        **_: Any,
    ) -> Tensor:
        """`aten::_to_copy` of a tensor of the device."""
        wanted = torch.empty_like(
            _shape_of(source),
            dtype=dtype or source.dtype,
            memory_format=memory_format or torch.preserve_format,
        )
        if device is None or device.type != "cpu":
            target = self._kernels.like(wanted)
        elif non_blocking:
            # As torch does for CUDA: memory that the device reaches.
            target = self._host.pinned(wanted.shape, wanted.stride(), wanted.dtype)
        else:
            target = torch.empty_strided(wanted.shape, wanted.stride(), dtype=wanted.dtype)
        return self.copy(source, target, non_blocking)

    def number(self, tensor: Tensor) -> Any:
        """`aten::_local_scalar_dense`: the process waits for it."""
        self._device.wait_current()
        return self._device.plain(tensor).item()

    def pin(self, tensor: Tensor, device: Any = None) -> Tensor:
        """`aten::_pin_memory` of a tensor of the CPU."""
        made = self._host.pinned(tensor.shape, tensor.contiguous().stride(), tensor.dtype)
        return made.copy_(tensor)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
