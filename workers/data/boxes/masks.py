"""Masks of things, of what COCO's files have of them: polygons, or lengths of runs.

Runs go down the columns, first those outside. A polygon has the pixels whose middle is in it; along
slanted borders pycocotools, which rounds the border first, has some others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MORE, _SIGN, _BITS, _FIRST = 0x20, 0x10, 5, 48


def mask_of(segmentation: Any, size: tuple[int, int]) -> NDArray[np.uint8]:  # noqa: ANN401 - JSON
    """A mask (height, width) of zeros and ones.

    Args:
        segmentation: as the file has it.
        size: width and height of the image.

    Raises:
        ValueError: it is none.
    """
    if isinstance(segmentation, Mapping):
        return _of_runs(segmentation, size)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise ValueError("it is neither polygons nor runs")
    width, height = size
    found = np.zeros((height, width), np.bool_)
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon has x and y of three points or more")
        found |= _inside(np.array(polygon, np.float64).reshape(-1, 2), size)
    return found.astype(np.uint8)


def _inside(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels have their middle in a polygon."""
    width, height = size
    # Where a row goes in or out: what comes to the right of an odd number of these is inside.
    crossings = np.zeros((height, width + 1), np.int64)
    for (x, y), (to_x, to_y) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = np.clip(np.ceil(np.sort([y, to_y]) - 0.5), 0, height).astype(np.int64)
        rows = np.arange(low, high)
        at = x + (rows + 0.5 - y) * (to_x - x) / (to_y - y) if len(rows) else rows
        columns = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)
        crossings[rows, columns] += 1
    inside: NDArray[np.bool_] = crossings.cumsum(axis=1)[:, :width] % 2 == 1
    return inside


def _of_runs(runs: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    width, height = size
    counts = runs.get("counts")
    if list(runs.get("size", ())) != [height, width]:
        raise ValueError(f"its size is {runs.get('size')}, that of the image {[height, width]}")
    lengths = list(_expanded(counts)) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or sum(lengths) != width * height or min(lengths) < 0:
        raise ValueError("its runs are not as long as the image has pixels")
    values = np.arange(len(lengths)) % 2
    flat = np.repeat(values.astype(np.uint8), lengths)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _expanded(text: str) -> Iterator[int]:
    """Lengths of runs of their compressed form.

    Source: `rleFrString` of cocodataset/cocoapi, common/maskApi.c.
    """
    # 5 bits in a letter, the lowest first; from the third on differences to the one before last.
    lengths: list[int] = []
    letters = iter(text)
    for letter in letters:
        number, shift, bits = 0, 0, ord(letter) - _FIRST
        while True:
            number |= (bits & 0x1F) << shift
            shift += _BITS
            if not bits & _MORE:
                break
            following = next(letters, None)
            if following is None:
                raise ValueError("its runs end in the middle of a number")
            bits = ord(following) - _FIRST
        if bits & _SIGN:
            number |= -1 << shift
        if len(lengths) > 2:
            number += lengths[-2]
        lengths.append(number)
        yield number
