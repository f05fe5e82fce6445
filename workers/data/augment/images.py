"""What is done at random to a training image besides its view: a policy, and a part erased."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import AutoAugmentPolicy, InterpolationMode

from bundlerun.launcher.training.images import ImageConfig
from bundlerun.workers.data.views import Seen, View

ERASED = "erased"
"""Of a sample's second input: (4,), top, left, height and width of what is to be erased."""
_NOTHING = (0, 0, 0, 0)


def policy_of(config: ImageConfig) -> Callable[[Image.Image], Image.Image] | None:
    """What --auto-augment names, of Pillow images; None: nothing."""
    how = InterpolationMode(config.interpolation)
    match config.auto_augment:
        case "none":
            return None
        case "ra":
            made: object = v2.RandAugment(magnitude=config.ra_magnitude, interpolation=how)
        case "ta-wide":
            made = v2.TrivialAugmentWide(interpolation=how)
        case "augmix":
            made = v2.AugMix(severity=config.augmix_severity, interpolation=how)
        case name:
            made = v2.AutoAugment(AutoAugmentPolicy(name), interpolation=how)
    return cast(Callable[[Image.Image], Image.Image], made)


class ErasingView:
    """A view, and which part of it is to be erased once its pixels are normalised.

    Args:
        view: of the image.
        share: of the images that have a part erased.
    """

    def __init__(self, view: View, share: float) -> None:
        self._view = view
        self._erasing = v2.RandomErasing(p=share)

    def __call__(self, image: Image.Image | Tensor) -> Seen:
        """Pixels, and {ERASED: (4,)}; draws as `RandomErasing` does, after the view."""
        pixels = self._view(image)
        assert isinstance(pixels, Tensor)
        return pixels, {ERASED: torch.tensor(self._place(pixels))}

    def _place(self, pixels: Tensor) -> tuple[int, int, int, int]:
        if torch.rand(1) >= self._erasing.p:
            return _NOTHING
        found: Mapping[str, int | None] = self._erasing.make_params([pixels])
        if found["v"] is None:
            return _NOTHING  # in ten tries, none that fits
        top, left, height, width = (found[name] or 0 for name in ("i", "j", "h", "w"))
        return top, left, height, width


def erased(images: Tensor, places: Tensor) -> Tensor:
    """Images (batch, channels, height, width) with zeros in the places (batch, 4), see `ERASED`."""
    top, left, height, width = places.unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    # By comparison, not by slices: these would have to wait for the device to know the numbers.
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
