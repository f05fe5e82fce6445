"""Images with a class for each pixel: ROOT/train/images/NAME.jpg and ROOT/train/masks/NAME.png."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.image_folder import decoded
from bundlerun.workers.data.image_index import walk
from bundlerun.workers.data.pixels import as_rgb
from bundlerun.workers.recipe import UnreadableSample

LAYOUT = (
    "images and masks are laid out as DATA/train/images/NAME.jpg and DATA/train/masks/NAME.png, "
    "and so below DATA/val"
)
_MASK = ".png"
_MODES = ("1", "L", "P", "I", "I;16")
"""Of Pillow, for images of one whole number per pixel."""
_SCALE = (0.5, 1.0)
"""How much of an image is seen in training; less would leave small things out."""


class MaskedImages:
    """(image, mask): uint8 (3, side, side), and the class of each pixel (side, side).

    Args:
        folder: has `images` and `masks`, with the same names.
        size: side of what is seen, pixels.
        num_classes: of the pixels, from 0 on.
        ignored: a number in masks that is no class.
        is_random: a random part, mirrored half of the times; else the whole image.

    Raises:
        ConfigError: there are no images, or an image has no mask.
    """

    def __init__(
        self, folder: Path, size: int, num_classes: int, ignored: int, *, is_random: bool
    ) -> None:
        self._folder = folder
        self._names = names_in(folder)
        self._size = [size, size]
        self._num_classes = num_classes
        self._ignored = ignored
        self._crop = v2.RandomResizedCrop(size, scale=_SCALE) if is_random else None
        # A byte where that will do: masks go to the last stage.
        is_small = max(num_classes - 1, ignored) < 256
        self._dtype = torch.uint8 if is_small else torch.int32

    def __len__(self) -> int:
        return len(self._names)

    def names_digest(self) -> str:
        """For `bundlerun.workers.data.same_data`."""
        return hashlib.sha256(os.fsencode("\0".join(self._names))).hexdigest()[:12]

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """What is seen of the image, and the classes of its pixels.

        Raises:
            UnreadableSample: a file is damaged or cannot be opened.
            ConfigError: a mask is of another size, or has a number that is no class.
        """
        name = self._names[index]
        image: Image.Image = decoded(str(self._folder / "images" / name), _rgb)
        mask = self._mask(name)
        if image.size != mask.size:
            raise ConfigError(
                f"the image {name!r} of {str(self._folder)!r} has {_text(image)} pixels, its mask "
                f"{_text(mask)}; give both one size"
            )
        if self._crop is None:
            seen, classes = F.resize(image, self._size), _nearest(mask, self._size)
        else:
            box = self._crop.make_params([image])
            is_mirrored = bool(torch.rand(1) < 0.5)
            seen = F.resized_crop(image, **box, size=self._size)
            classes = _nearest(F.crop(mask, **box), self._size)
            if is_mirrored:
                seen, classes = F.horizontal_flip(seen), F.horizontal_flip(classes)
        pixels: Tensor = F.pil_to_tensor(seen)
        return pixels, torch.from_numpy(np.array(classes, dtype=np.int32)).to(self._dtype)

    def look(self, most: int) -> None:
        """Reads up to so many masks, from all over; raises ConfigError as reading them all would.

        A file that cannot be read is left to who needs it.
        """
        for name in self._names[:: max(1, len(self) // most)]:
            with suppress(UnreadableSample):
                self._mask(name)

    def _mask(self, name: str) -> Image.Image:
        path = mask_of(self._folder, name)
        mask: Image.Image = decoded(str(path), _loaded)
        if mask.mode not in _MODES:
            raise ConfigError(
                f"the mask {str(path)!r} is of Pillow's mode {mask.mode}; a mask has one whole "
                "number per pixel, the number of its class, grey or by a palette"
            )
        numbers = np.asarray(mask)
        wrong = (numbers >= self._num_classes) & (numbers != self._ignored)
        if wrong.any():
            row, column = (int(n) for n in np.argwhere(wrong)[0])
            raise ConfigError(
                f"the mask {str(path)!r} has the label {int(numbers[row, column])} at row {row}, "
                f"column {column}; labels are 0 to {self._num_classes - 1}, or --ignore-index "
                f"{self._ignored}"
            )
        return mask


def names_in(folder: Path) -> Sequence[str]:
    """The images of a folder, by their paths in `images`, in order.

    Raises:
        ConfigError: there are none, or one has no mask.
    """
    root = folder / "images"
    found = [
        os.path.relpath(Path(top) / name, root)
        for top, files, _ in walk(root)
        for name in files
        if name.lower().endswith(IMG_EXTENSIONS)
    ]
    if not found:
        raise ConfigError(f"there are no images in {str(root)!r}; {LAYOUT}")
    there = {
        os.path.relpath(Path(top) / name, folder / "masks")
        for top, files, _ in walk(folder / "masks")
        for name in files
    }
    bare = sorted(name for name in found if str(Path(name).with_suffix(_MASK)) not in there)
    if bare:
        raise ConfigError(
            f"{len(bare)} of {len(found)} images of {str(root)!r} have no mask, such as "
            f"{bare[0]!r}: there is no {str(mask_of(folder, bare[0]))!r}; {LAYOUT}"
        )
    return sorted(found)


def mask_of(folder: Path, name: str) -> Path:
    """Where the mask of an image is."""
    return (folder / "masks" / name).with_suffix(_MASK)


def _rgb(file: BinaryIO) -> Image.Image:
    with Image.open(file) as image:
        return as_rgb(image)


def _loaded(file: BinaryIO) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image.copy()


def _nearest(mask: Image.Image, size: Sequence[int]) -> Image.Image:
    return mask.resize((size[1], size[0]), Image.Resampling.NEAREST)


def _text(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
