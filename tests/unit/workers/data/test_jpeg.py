"""JPEG files have Pillow's pixels, whoever decodes them, and what Pillow refuses is refused."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.workload.pictures import picture
from bundlerun.workers.data import jpeg
from bundlerun.workers.data.jpeg import pixels_of_jpeg

ORIENTATION = 0x0112
needs_simplejpeg = pytest.mark.skipif(
    importlib.util.find_spec("simplejpeg") is None, reason="simplejpeg is not installed"
)


@pytest.fixture(autouse=True, params=["Pillow", pytest.param("", marks=needs_simplejpeg)])
def by_pillow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    return bool(request.param)


def data_of(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def pillows(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1)


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return data_of(image, exif=exif)


@pytest.mark.parametrize("size", [(300, 225), (123, 77), (17, 60), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95, "subsampling": 0},
        {"quality": 90, "subsampling": 1},
        {"quality": 75, "subsampling": 2},
        {"quality": 30, "progressive": True},
        {"quality": 90, "optimize": True, "restart_marker_blocks": 4},
        {"quality": 85, "keep_rgb": True},
    ],
    ids=str,
)
def test_pixels_are_pillows(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = data_of(picture(*size, seed=1), **options)
    found = pixels_of_jpeg(data)
    assert found.dtype is torch.uint8
    assert torch.equal(found, pillows(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_modes_become_colours_as_pillow_makes_them(mode: str) -> None:
    data = data_of(picture(40, 30, seed=2).convert(mode))
    assert torch.equal(pixels_of_jpeg(data), pillows(data))


def test_an_orientation_is_not_obeyed_as_pillow_does_not() -> None:
    data = turned(picture(40, 30, seed=3))
    found = pixels_of_jpeg(data)
    assert found.shape == (3, 30, 40)
    assert torch.equal(found, pillows(data))


def test_what_only_pillow_forgives_has_its_pixels() -> None:
    """Bytes between two parts of a file, of which the library warns."""
    data = bytearray(data_of(picture(64, 64, seed=4)))
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(8)
    assert torch.equal(pixels_of_jpeg(bytes(data)), pillows(bytes(data)))


@pytest.mark.parametrize(
    "data",
    [
        data_of(picture(200, 150, seed=5))[:-900],
        data_of(picture(200, 150, seed=5), progressive=True)[:3000],
        data_of(picture(40, 30, seed=6))[:200],
        jpeg.MARK,
        jpeg.MARK + bytes(400),
    ],
    ids=["cut short", "progressive, cut short", "half a header", "mark only", "zeros"],
)
def test_what_is_damaged_raises_what_pillow_raises(data: bytes) -> None:
    with pytest.raises(Exception, match=r".") as pillow, Image.open(io.BytesIO(data)) as image:
        image.load()
    with pytest.raises(pillow.type):
        pixels_of_jpeg(data)


def test_a_size_that_pillow_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(picture(40, 30, seed=7))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        pixels_of_jpeg(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        pixels_of_jpeg(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert pixels_of_jpeg(data).shape == (3, 30, 40)


@needs_simplejpeg
def test_where_simplejpeg_is_installed_pillow_opens_only_what_is_unusual(
    by_pillow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or Image.new("RGB", (1, 1)))
    pixels_of_jpeg(data_of(picture(40, 30, seed=8)))
    assert bool(opened) is by_pillow
    pixels_of_jpeg(data_of(picture(40, 30, seed=8).convert("CMYK")))
    assert opened
