"""Images of every mode have the values that people expect of them, in 8 bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundlerun.workers.data.pixels import UnknownScale, as_rgb

RAMP = np.array([[0, 1, 128, 255]])


def stored(image: Image.Image, kind: str) -> Image.Image:
    """The image as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(image: Image.Image) -> list[Any]:
    found = as_rgb(image)
    assert found.mode == "RGB"
    return np.asarray(found)[0].tolist()


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled(kind: str) -> None:
    wide = Image.fromarray((RAMP * 257).astype(np.uint16))
    assert pixels(stored(wide, kind)) == grey(0, 1, 128, 255)


def test_grey_of_16_bits_in_the_other_byte_order_is_scaled() -> None:
    data = (RAMP * 257).astype(">u2").tobytes()
    assert pixels(Image.frombytes("I;16B", (4, 1), data)) == grey(0, 1, 128, 255)


def test_a_png_that_an_older_pillow_opens_with_32_bits_is_scaled() -> None:
    wide = Image.fromarray((RAMP * 257).astype(np.int32))
    wide.format = "PNG"
    assert pixels(wide) == grey(0, 1, 128, 255)


def test_real_numbers_from_0_to_1_are_scaled() -> None:
    real = Image.fromarray((RAMP / 255).astype(np.float32))
    assert pixels(stored(real, "TIFF")) == grey(0, 1, 128, 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 300.0]], np.float32), "real numbers from 0 to 300, .* with 0 to 1"),
        (np.array([[-0.5, 0.5]], np.float32), "real numbers from -0.5 to 0.5"),
        (np.array([[0.0, np.nan]], np.float32), "real numbers from nan to nan"),
        (np.array([[0, 70000]], np.int32), "32-bit numbers from 0 to 70000, .* 8 or 16 bits"),
    ],
)
def test_numbers_that_could_mean_anything_are_refused(values: Any, message: str) -> None:
    with pytest.raises(UnknownScale, match=message):
        as_rgb(stored(Image.fromarray(values), "TIFF"))


def test_other_modes_are_as_pillow_converts_them() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=b"\x00\x80")
    assert pixels(Image.open(file)) == [[10, 20, 30], [200, 100, 50]], "transparency is left out"
    assert pixels(stored(Image.new("LA", (1, 1), (7, 0)), "PNG")) == grey(7)
    assert pixels(stored(Image.new("RGBA", (1, 1), (1, 2, 3, 0)), "PNG")) == [[1, 2, 3]]
    assert pixels(stored(Image.new("1", (1, 1), 1), "PNG")) == grey(255)
    assert pixels(stored(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")) == [[0, 255, 255]]


def test_colours_of_16_bits_keep_their_high_byte() -> None:
    header = b"P6 1 1 65535\n"
    image = Image.open(io.BytesIO(header + np.array([257 * 9, 257 * 200, 0], ">u2").tobytes()))
    assert pixels(image) == [[9, 200, 0]]
