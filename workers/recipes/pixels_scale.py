"""Pixels of 0 to 255 as the numbers that models of images take."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's colours, red, green and blue
STD = (0.229, 0.224, 0.225)
WHITE = 255
PIXELS = "pixel_values"
"""What models of transformers that see images are called with."""


class Scale:
    """Divides pixels by 255 and normalises them, wherever they are."""

    def __init__(self) -> None:
        self._known: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """float32 of uint8 (batch, 3, height, width); other numbers are left as they are."""
        if images.dtype is not torch.uint8:
            return images
        mean, std = self._of(images.device)
        # In this order, and times 1 / 255, each number is what torchvision's transforms make of it.
        return images.to(torch.float32).mul_(1.0 / WHITE).sub_(mean).div_(std)

    def _of(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Made once: a copy to a GPU would wait for all that it has been given.
        if device not in self._known:
            mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (MEAN, STD))
            self._known[device] = mean, std
        return self._known[device]
