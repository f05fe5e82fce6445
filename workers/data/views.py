"""What the model sees of an image: a part of it, resized to a square, 8 bits per colour.

Of a Pillow image, each view is what torchvision's transforms make of it, to the bit; of a tensor,
what torch's resizing makes of it, which rounds otherwise: 1 of 255 at most where it is bilinear.
What is random is drawn alike for both, and policies work on Pillow images in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from bundlerun.launcher.choices import Interpolation

Seen = Tensor | tuple[Tensor, Mapping[str, Tensor]]
"""uint8 (3, side, side), and what is to be done to it where it is normalised."""
View = Callable[[Image.Image | Tensor], Seen]
"""Gives that of a Pillow image in mode RGB, or of uint8 (3, height, width)."""
Policy = Callable[[Image.Image], Image.Image]
_OF_TENSORS: Mapping[Interpolation, str] = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "nearest": "nearest-exact",  # as Pillow: "nearest" of torch takes another pixel
}


class RandomView:
    """A random part, mirrored half of the times: for training.

    Args:
        size: side of the square, pixels.
        interpolation: how it is resized.
        policy: what is done to it besides; None: nothing.
    """

    def __init__(
        self,
        size: int,
        *,
        interpolation: Interpolation = "bilinear",
        policy: Policy | None = None,
    ) -> None:
        self._size = [size, size]
        self._crop = v2.RandomResizedCrop(size)
        self._interpolation = interpolation
        self._policy = policy

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Draws from torch's generator, as `RandomResizedCrop` and `RandomHorizontalFlip` do.

        Then as the policy does.
        """
        box = self._crop.make_params([image])
        is_mirrored = bool(torch.rand(1) < 0.5)
        if isinstance(image, Tensor):
            pixels = _resized(_cut(image, **box), self._size, self._interpolation)
            pixels = pixels.flip(-1) if is_mirrored else pixels
            return _after(self._policy, pixels)
        how = InterpolationMode(self._interpolation)
        seen = F.resized_crop(image, **box, size=self._size, interpolation=how)
        seen = F.horizontal_flip(seen) if is_mirrored else seen
        return _pixels(seen if self._policy is None else self._policy(seen))


class MiddleView:
    """The whole image, or the middle of it: for validation.

    Args:
        resize: [height, width]; or a number, for the shorter side.
        crop: side of the square in the middle, pixels.
        interpolation: how it is resized.
        policy: what is done to it besides; None: nothing.
    """

    def __init__(
        self,
        resize: int | list[int],
        crop: int,
        *,
        interpolation: Interpolation = "bilinear",
        policy: Policy | None = None,
    ) -> None:
        self._resize = resize
        self._crop = [crop, crop]
        self._interpolation = interpolation
        self._policy = policy

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Always the same, unless there is a policy."""
        if isinstance(image, Tensor):
            whole = _resized(image, self._size(image), self._interpolation)
            return _after(self._policy, F.center_crop(whole, self._crop))
        resized = F.resize(image, self._resize, InterpolationMode(self._interpolation))
        seen = F.center_crop(resized, self._crop)
        return _pixels(seen if self._policy is None else self._policy(seen))

    def _size(self, image: Tensor) -> list[int]:
        """What `resize` makes of an image, as torchvision rounds it."""
        if not isinstance(self._resize, int):
            return self._resize
        height, width = image.shape[1:]
        shorter = min(height, width)
        return [int(self._resize * side / shorter) for side in (height, width)]


def _after(policy: Policy | None, pixels: Tensor) -> Tensor:
    # Small by now. Pillow turns and shears them in less time than torch does.
    return pixels if policy is None else _pixels(policy(F.to_pil_image(pixels)))


def _pixels(image: Image.Image) -> Tensor:
    pixels: Tensor = F.pil_to_tensor(image)
    return pixels


def _cut(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[:, top : top + height, left : left + width]


def _resized(image: Tensor, size: list[int], interpolation: Interpolation) -> Tensor:
    # With an image's colours next to each other torch is fastest; with whole numbers it gives the
    # same on every processor. By way of torchvision's transforms it would take a fifth longer.
    image = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    mode = _OF_TENSORS[interpolation]
    return interpolate(image, size, mode=mode, antialias=interpolation != "nearest")[0]
