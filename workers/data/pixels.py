"""Converts any image to 8 bits per colour: red, green, blue.

Pillow's own conversion does so for palettes, CMYK, one bit, grey and transparency (which is left
out), as torchvision's ImageFolder has it. Of pixels wider than 8 bits it keeps what fits: a grey
image of 16 bits becomes white, and one of real numbers from 0 to 1 black. Those are scaled here.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_WIDE = ("I", "F")
"""How the modes of wider pixels begin: `I`, `I;16`, `I;16B`, `F`."""
_WIDEST = 0xFFFF


class UnknownScale(ValueError):
    """Nothing says what number is white."""


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; its pixels are loaded.

    Raises:
        UnknownScale: its numbers could mean anything.
    """
    if not image.mode.startswith(_WIDE):
        return image.convert("RGB")
    return Image.fromarray(_grey(image)).convert("RGB")


def _grey(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # The high byte, as Pillow has it for colours of 16 bits. Its older versions open a PNG
        # file of 16 bits in mode I.
        return (pixels.astype(np.int64).clip(0, _WIDEST) >> 8).astype(np.uint8)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if image.mode == "F" and low >= 0.0 and high <= 1.0:
        return (pixels * 255.0 + 0.5).astype(np.uint8)
    kind = "real" if image.mode == "F" else "32-bit"
    right = "0 to 1" if image.mode == "F" else "8 or 16 bits"
    raise UnknownScale(
        f"its pixels are {kind} numbers from {low:g} to {high:g}, and nothing says which is white; "
        f"save it with {right}"
    )
