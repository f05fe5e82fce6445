"""Pictures that are as hard to decode as photographs, made on the spot: nothing is downloaded."""

from __future__ import annotations

import numpy as np
from PIL import Image

_FALL = 1.2
"""Photographs have about 1 / frequency of each frequency; a little less, as cameras smooth."""
_OWN_COLOUR = 0.3
"""Share of a colour that the others do not have."""


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture in mode RGB; the same for a seed."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0  # of the mean, which is set below

    def noise() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        parts = generator.normal(size=(2, *frequency.shape)) / frequency**_FALL
        found: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
        found = np.fft.irfft2(parts[0] + 1j * parts[1], s=(height, width))
        found -= found.mean()
        found /= found.std() or 1.0  # of one pixel there is none
        return found

    grey = noise()
    colours = np.stack([grey + _OWN_COLOUR * noise() for _ in range(3)], axis=-1)
    return Image.fromarray((120 + 50 * colours).clip(0, 255).astype(np.uint8))
