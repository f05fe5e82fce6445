"""What a file of annotations in COCO's form says, checked, as arrays.

{"images": [{"id": 7, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
"annotations": [{"image_id": 7, "category_id": 18, "bbox": [x, y, w, h], "iscrowd": 0}, ...],
"categories": [{"id": 18, "name": "dog"}, ...]}
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bundlerun.launcher.errors import ConfigError

Extra = Literal["masks", "keypoints"]
_MOST_BYTES = 4 << 20
"""Of categories that are looked for alone."""


@dataclass(frozen=True, slots=True)
class Categories:
    """What things are called, and their labels in training; 0 is the background.

    Args:
        labels: by the number of the category in the file.
        names: the same.
        points: names of the key points of a thing, where it has any.
    """

    labels: Mapping[int, int]
    names: Mapping[int, str]
    points: tuple[str, ...] = ()

    @property
    def by_label(self) -> list[str]:
        """Names in the order of the labels; those that are no category are empty."""
        found = [""] * (max(self.labels.values(), default=0) + 1)
        for number, label in self.labels.items():
            found[label] = self.names[number]
        return found

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Key points that are each other's mirror image: left_eye and right_eye."""
        places = {name: place for place, name in enumerate(self.points)}
        mirrored = ((p, n.replace("left", "right")) for n, p in places.items() if "left" in n)
        return [(place, places[name]) for place, name in mirrored if name in places]


@dataclass(frozen=True, slots=True)
class ImageNotes:
    """What is known of one image; nothing in it is outside of the image, and all have an area.

    Args:
        file: its path in the folder of images.
        size: width and height, pixels.
        boxes: float32 (n, 4), left, top, right and bottom, pixels.
        labels: int64 (n,).
        crowds: bool (n,), of many things together, which nobody learns.
        extras: of each box what the file has of its mask, or its key points (points, 3).
    """

    file: str
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    extras: Sequence[Any] = ()

    @property
    def learnt_extras(self) -> list[Any]:
        """Those that are of no crowd."""
        crowds = self.crowds if self.extras else ()
        return [e for e, is_crowd in zip(self.extras, crowds, strict=True) if not is_crowd]


@dataclass(slots=True)
class Annotations:
    """The images of a file, in the order of their numbers, and how much was left out."""

    images: list[ImageNotes] = field(default_factory=list)
    num_without_area: int = 0
    """Boxes that have none inside of their image."""


def read_categories(path: Path, num_classes: int = 0) -> Categories:
    """The categories of a file, quickly, of however many annotations.

    Args:
        path: of the file.
        num_classes: outputs of the model; where given, labels are the numbers of the categories.

    Raises:
        ConfigError: they are not as they should be, or beyond `num_classes`.
    """
    try:
        rows = _categories_alone(path)
    except OSError as exc:
        raise ConfigError(f"cannot read {str(path)!r}: {exc.strerror}") from exc
    if rows is None:
        rows = _loaded(path)["categories"]
    names: dict[int, str] = {}
    for row in rows:
        number, name = (row.get("id"), row.get("name")) if isinstance(row, dict) else (None, None)
        if type(number) is not int or number < 0 or not isinstance(name, str) or number in names:
            raise ConfigError(
                f"the categories of {str(path)!r} have {_short(row)}; each is a number of its own "
                'and a name, such as {"id": 1, "name": "person"}'
            )
        names[number] = name
    if not names:
        raise ConfigError(f"{str(path)!r} has no categories; there is nothing to learn")
    labels = {number: place for place, number in enumerate(sorted(names), 1)}
    if num_classes:
        labels = {number: number for number in names}
        _check_labels(path, names, num_classes)
    points = {tuple(map(str, row["keypoints"])) for row in rows if row.get("keypoints")}
    return Categories(labels, names, points.pop() if len(points) == 1 else ())


def _check_labels(path: Path, names: Mapping[int, str], num_classes: int) -> None:
    for number in sorted(names, key=lambda n: 0 < n < num_classes):
        if not 0 < number < num_classes:
            raise ConfigError(
                f"category {number} ({names[number]!r}) of {str(path)!r} is not 1 to "
                f"{num_classes - 1}, the labels that --num-classes {num_classes} leaves beside the "
                f"background; give --num-classes {max(names) + 1} or more, or leave it out to "
                "count the categories from 1"
            )


def read_annotations(path: Path, categories: Categories, extra: Extra | None = None) -> Annotations:
    """All that a file says of its images.

    Args:
        path: of the file.
        categories: those that may occur.
        extra: what else to keep of each box.

    Raises:
        ConfigError: something in it is not as it should be.
    """
    told = _loaded(path)
    rows: dict[int, dict[str, Any]] = {}
    for row in told["images"]:
        if not _is_image(row) or row["id"] in rows:
            raise ConfigError(
                f"the images of {str(path)!r} have {_short(row)}; each has an id of its own, a "
                "file_name, and width and height in pixels"
            )
        rows[row["id"]] = row
    of_image: dict[int, list[dict[str, Any]]] = {number: [] for number in rows}
    for row in told["annotations"]:
        _check(path, row, of_image, categories, extra)
        of_image[row["image_id"]].append(row)
    del told  # of a large file some gigabytes
    found = Annotations()
    for number in sorted(rows):
        found.images.append(_notes(rows[number], of_image.pop(number), categories, extra, found))
    return found


def _notes(
    image: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    categories: Categories,
    extra: Extra | None,
    found: Annotations,
) -> ImageNotes:
    size = image["width"], image["height"]
    wide = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    wide[:, 2:] += wide[:, :2]
    # What reaches out of the image is cut off, and what then has no area left out: as in
    # torchvision's reference training.
    boxes = np.clip(wide, 0, np.array(size * 2)).astype(np.float32)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    found.num_without_area += int((~kept).sum())
    chosen = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]
    name = "segmentation" if extra == "masks" else "keypoints"
    return ImageNotes(
        file=image["file_name"],
        size=size,
        boxes=boxes[kept],
        labels=np.array([categories.labels[row["category_id"]] for row in chosen], np.int64),
        crowds=np.array([bool(row.get("iscrowd", 0)) for row in chosen], np.bool_),
        extras=[row.get(name) for row in chosen] if extra else (),
    )


def _check(
    path: Path,
    row: object,
    images: Mapping[int, object],
    categories: Categories,
    extra: Extra | None,
) -> None:
    """Raises ConfigError where an annotation is not as it should be."""
    if not isinstance(row, dict):
        raise ConfigError(f"the annotations of {str(path)!r} have {_short(row)}, which is no dict")
    who = f"annotation {row.get('id', _short(row))} of {str(path)!r}"
    if row.get("image_id") not in images:
        raise ConfigError(f"{who} is about image {row.get('image_id')!r}, which the file has not")
    if row.get("category_id") not in categories.labels:
        numbers = sorted(categories.labels)
        raise ConfigError(
            f"{who} has the label {row.get('category_id')!r}; the categories of the training data "
            f"are {', '.join(map(str, numbers[:8]))}" + (", ..." if len(numbers) > 8 else "")
        )
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ConfigError(
            f"{who} has the box {_short(box)}; a box is [left, top, width, height], in pixels"
        )
    if row.get("iscrowd", 0):
        return  # nobody learns its mask or key points
    if extra == "masks" and not row.get("segmentation"):
        raise ConfigError(f"{who} has no segmentation, which this model learns from")
    if extra == "keypoints":
        points, count = row.get("keypoints"), 3 * len(categories.points)
        if not isinstance(points, list) or len(points) != count or not all(map(_is_number, points)):
            raise ConfigError(
                f"{who} has the keypoints {_short(points)}; this model learns from {count} numbers,"
                f" x, y and visibility of each of the {len(categories.points)} points that the "
                "category names"
            )


def _is_image(row: object) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("id")) is int
        and isinstance(row.get("file_name"), str)
        and all(type(row.get(name)) is int and row[name] > 0 for name in ("width", "height"))
    )


def _is_number(value: object) -> bool:
    # JSON as Python reads it knows NaN and Infinity, too.
    return type(value) is int or (type(value) is float and value - value == 0)


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _loaded(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open("rb") as file:
            told = json.load(file)
    except OSError as exc:
        raise ConfigError(f"cannot read {str(path)!r}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:  # a text that is no UTF-8 is one of the former
        raise ConfigError(f"{str(path)!r} is no JSON: {exc}") from exc
    for name in ("images", "annotations", "categories"):
        if not isinstance(told, dict) or not isinstance(told.get(name), list):
            raise ConfigError(
                f"{str(path)!r} has no list {name!r}; annotations in COCO's form have the lists "
                "'images', 'annotations' and 'categories'"
            )
    found: dict[str, list[Any]] = told
    return found


def _categories_alone(path: Path) -> list[Any] | None:
    """The categories, without the rest of a file of maybe 500 MB; None: they are not found so."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # Once only: else it may be the name of something else.
            place = data.rfind(b'"categories"')
            if place < 0 or data.find(b'"categories"') != place:
                return None
            begin = data.find(b":", place) + 1
            text = data[begin : begin + _MOST_BYTES].decode("utf-8", "replace").lstrip()
    try:
        rows, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) else None
