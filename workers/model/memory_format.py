"""In which order images and the weights of convolutions lie in memory: --memory-format.

    contiguous       all of one channel, then all of the next       torch's own order
    channels_last    all channels of one pixel, then of the next    what convolutions of GPUs want

The order is no part of the model: names, shapes and checkpoints are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bundlerun.launcher.choices import MemoryFormat, MemoryFormatChoice
from bundlerun.launcher.errors import ConfigError

_FORMATS: dict[MemoryFormat, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def check_has_images(choice: MemoryFormatChoice, model: nn.Module | Sequence[nn.Module]) -> None:
    """Raises ConfigError for an order of images that a model without any is asked to have."""
    modules = [model] if isinstance(model, nn.Module) else model
    if choice == "channels_last" and not any(map(_images, modules)):
        raise ConfigError(
            "--memory-format channels_last is an order of images, and no parameter of the model "
            "has four dimensions, as those of convolutions have; leave it out"
        )


def arrange(stage: nn.Module, choice: MemoryFormatChoice, *, has_gpus: bool) -> torch.memory_format:
    """Brings what a stage has of images into their order, in place, before an optimizer sees it.

    Args:
        stage: on its device.
        choice: as configured. "auto" is channels_last on GPUs; on the CPU all stays as it is, with
            the bits that it gives.
        has_gpus: whether all nodes have some: replicas sum gradients in the order of memory.

    Returns:
        The order that its inputs should have; `torch.preserve_format` where it has no images.
    """
    if choice == "auto" and not has_gpus:
        return torch.preserve_format
    wanted = _FORMATS["channels_last" if choice == "auto" else choice]
    tensors = _images(stage)
    for tensor in tensors:
        tensor.data = tensor.data.contiguous(memory_format=wanted)
    return wanted if tensors else torch.preserve_format


def _images(module: nn.Module) -> list[Tensor]:
    """What has the four dimensions of images; each once."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    return [t for t in tensors if t.dim() == 4 and t.layout is torch.strided]
