"""JPEG files decoded in less time than Pillow takes, where simplejpeg is installed.

Both have libjpeg-turbo inside and give the same pixels, so it does not matter which one a node has.
What simplejpeg does not take, or takes otherwise (CMYK, damaged files), is Pillow's.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from bundlerun.workers.data.pixels import as_rgb

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MARK = b"\xff\xd8\xff"
"""How a JPEG file begins."""
_USUAL = ("YCbCr", "RGB", "Gray")
"""Libraries differ in how they make red, green and blue of others, such as CMYK."""


def pixels_of_jpeg(data: bytes) -> Tensor:
    """Pixels of a JPEG file: uint8 (3, height, width), each pixel's colours next to each other.

    Raises:
        Exception: what Pillow raises for it.
    """
    pixels = _by_simplejpeg(data)
    if pixels is None:
        with Image.open(io.BytesIO(data)) as image:
            pixels = pil_to_tensor(as_rgb(image))
    return pixels


def _by_simplejpeg(data: bytes) -> Tensor | None:
    """None where Pillow is to say what becomes of it."""
    if simplejpeg is None:
        return None
    try:
        height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
        if kind not in _USUAL or _is_too_large(height * width):
            return None
        # It is strict: what the library warns of is an error.
        pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _is_too_large(num_pixels: int) -> bool:
    """Whether Pillow would warn of the size, or refuse it."""
    return Image.MAX_IMAGE_PIXELS is not None and num_pixels > Image.MAX_IMAGE_PIXELS
