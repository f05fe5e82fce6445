"""A quick look at a data set: which recipe reads it, how much of it there is, how large images are.

It lists folders and opens the headers of a few images; a large data set is counted by a part of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import OF_BOXES, OF_IMAGES, OF_PIXELS, OF_TEXTS
from bundlerun.launcher.preflight import SYNTHETIC, data_path

_MOST_CLASSES = 40
"""Class folders whose images are counted; the others are taken to be like them."""
_NUM_OPENED = 48
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SHARDS = (".tar", ".parquet")
_VAL = ("val", "valid", "validation")
_TEXTS = (".csv", ".jsonl")
_SYNTHETIC_SIDE = 224
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLook:
    """What is seen of a data set at a glance.

    data: as it is given.
    recipe: which reads it.
    num_train: samples for training, about; 0: not known without reading it all.
    is_counted: whether that is exact.
    num_classes: 0: not known.
    has_val: whether there is a part for validation.
    side: the shorter side of half of the images is at most this, pixels; 0: none was opened.
    largest: the longer side of the largest that was opened, pixels.
    num_opened: images whose size was read.
    unreadable: the first of those that could not be.
    num_unreadable: how many.
    """

    data: str
    recipe: str
    num_train: int = 0
    is_counted: bool = True
    num_classes: int = 0
    has_val: bool = True
    side: int = 0
    largest: int = 0
    num_opened: int = 0
    unreadable: str = ""
    num_unreadable: int = 0


def look_at_data(data: str, *, synthetic_samples: int) -> DataLook:
    """What is to be seen of DATA.

    Raises:
        ConfigError: there is nothing, or nothing that a recipe of ours reads.
    """
    if data == SYNTHETIC:
        return DataLook(
            data=data, recipe=OF_IMAGES, num_train=synthetic_samples, side=_SYNTHETIC_SIDE
        )
    path = data_path(data)
    try:
        if path.is_file():
            of_texts = path.suffix.lower() in _TEXTS
            return DataLook(data=data, recipe=OF_TEXTS if of_texts else "characters")
        if not path.is_dir():
            raise ConfigError(
                f"no data at {data!r}: no such file or folder; give what you want to train with, "
                f"or {SYNTHETIC}"
            )
        return _look_at_folder(data, path)
    except OSError as exc:
        raise ConfigError(f"cannot look at {str(exc.filename)!r}: {exc.strerror}") from exc


def _look_at_folder(data: str, root: Path) -> DataLook:
    has_val = any((root / name).is_dir() for name in _VAL)
    train = root / "train"
    if (
        any((root / "annotations").glob("instances_train*.json"))
        or (train / "_annotations.coco.json").is_file()
    ):
        return DataLook(data=data, recipe=OF_BOXES)
    if (train / "images").is_dir() and (train / "masks").is_dir():
        images = list(_images(train / "images"))
        return _with_sizes(
            DataLook(data=data, recipe=OF_PIXELS, num_train=len(images), has_val=has_val), images
        )
    shards = [path for folder in (root, train) for path in _files(folder, _SHARDS)]
    if shards:
        of_val = any(path.name.startswith(_VAL) for path in shards)
        return DataLook(data=data, recipe=OF_IMAGES, has_val=has_val or of_val)
    if any(_files(root, _TEXTS)):
        return DataLook(data=data, recipe=OF_TEXTS)
    if train.is_dir():
        return _look_at_classes(data, train, has_val)
    raise ConfigError(
        f"DATA {data!r} has no folder 'train', no shards and no annotations; lay it out as "
        f"docs/recipes.md says, or use {SYNTHETIC}"
    )


def _look_at_classes(data: str, train: Path, has_val: bool) -> DataLook:
    with os.scandir(train) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise ConfigError(f"{str(train)!r} has no class folders; DATA/train/CLASS/IMAGE is right")
    seen = _spread(names, _MOST_CLASSES)
    images = [path for name in seen for path in _images(train / name)]
    look = DataLook(
        data=data,
        recipe=OF_IMAGES,
        num_train=round(len(images) * len(names) / len(seen)),
        is_counted=len(seen) == len(names),
        num_classes=len(names),
        has_val=has_val,
    )
    return _with_sizes(look, images)


def _with_sizes(look: DataLook, images: Sequence[Path]) -> DataLook:
    """The same, with what the headers of some images say."""
    # A dependency of torchvision's; without it, sizes stay unknown.
    try:
        from PIL import Image
    except ImportError:
        return look
    sizes, bad = [], []
    for path in _spread(images, _NUM_OPENED):
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except (OSError, ValueError, Image.DecompressionBombError):
            bad.append(str(path))
    return replace(
        look,
        side=round(median(map(min, sizes))) if sizes else 0,
        largest=max(map(max, sizes), default=0),
        num_opened=len(sizes) + len(bad),
        unreadable=bad[0] if bad else "",
        num_unreadable=len(bad),
    )


def _images(folder: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(top, name)


def _files(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
