"""What the GPU of a rank can do by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CUDA = "cuda"
_FUSED = (_CUDA, "xpu")
"""Kinds for which torch has a whole step of an optimizer in one kernel; the CPU keeps its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Kinds of numbers that a GPU computes with, without emulating them."""

    name: str
    has_tf32: bool
    has_bfloat16: bool


def traits_of(device: torch.device) -> Traits:
    """What a GPU can do; of other kinds than CUDA and ROCm torch says less."""
    if device.type != _CUDA:
        return Traits(
            name=f"a device of the kind {device.type!r}", has_tf32=False, has_bfloat16=True
        )
    # torch answers for the current device.
    with torch.cuda.device(device):
        return Traits(
            name=torch.cuda.get_device_name(device),
            has_tf32=torch.cuda.is_tf32_supported(),
            has_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
        )


def has_fused_step(device: torch.device) -> bool:
    """Whether torch has a kernel there that does a whole step of its own optimizers."""
    return device.type in _FUSED
