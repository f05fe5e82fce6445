"""What the model sees of an image: a part of it, resized to a square, 8 bits per colour.

Of a Pillow image, each view is what torchvision's transforms make of it, to the bit; of a tensor,
what torch's resizing makes of it, which rounds otherwise: 1 of 255 at most. What is random is drawn
alike for both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

View = Callable[[Image.Image | Tensor], Tensor]
"""Gives uint8 (3, side, side) of a Pillow image in mode RGB, or of uint8 (3, height, width)."""


class RandomView:
    """A random part, mirrored half of the times: for training.

    Args:
        size: side of the square, pixels.
    """

    def __init__(self, size: int) -> None:
        self._size = [size, size]
        self._crop = v2.RandomResizedCrop(size)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Draws from torch's generator, as `RandomResizedCrop` and `RandomHorizontalFlip` do."""
        box = self._crop.make_params([image])
        is_mirrored = bool(torch.rand(1) < 0.5)
        if isinstance(image, Tensor):
            pixels = _resized(_cut(image, **box), self._size)
            return pixels.flip(-1) if is_mirrored else pixels
        seen = F.resized_crop(image, **box, size=self._size)
        return _pixels(F.horizontal_flip(seen) if is_mirrored else seen)


class MiddleView:
    """The whole image, or the middle of it: for validation.

    Args:
        resize: [height, width]; or a number, for the shorter side.
        crop: side of the square in the middle, pixels.
    """

    def __init__(self, resize: int | list[int], crop: int) -> None:
        self._resize = resize
        self._crop = [crop, crop]

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Always the same."""
        if isinstance(image, Tensor):
            pixels: Tensor = F.center_crop(_resized(image, self._size(image)), self._crop)
            return pixels
        return _pixels(F.center_crop(F.resize(image, self._resize), self._crop))

    def _size(self, image: Tensor) -> list[int]:
        """What `resize` makes of an image, as torchvision rounds it."""
        if not isinstance(self._resize, int):
            return self._resize
        height, width = image.shape[1:]
        shorter = min(height, width)
        return [int(self._resize * side / shorter) for side in (height, width)]


def _pixels(image: Image.Image) -> Tensor:
    pixels: Tensor = F.pil_to_tensor(image)
    return pixels


def _cut(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]


def _resized(image: Tensor, size: list[int]) -> Tensor:
    # With an image's colours next to each other torch is fastest; with whole numbers it gives the
    # same on every processor. By way of torchvision's transforms it would take a fifth longer.
    image = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(image, size, mode="bilinear", antialias=True)[0]
