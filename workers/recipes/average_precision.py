"""Average precision of detections, as COCO defines it.

    one image     detections and what is there are matched, for each of ten overlaps
    all images    detections in the order of their scores: precision at 101 recalls, its mean

Each image is matched where its detections are; only the outcome has to come together. Numbers equal
those of pycocotools for boxes of any area, with its 100 detections per image and class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]
OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Areas that two boxes have in common over those that they have together."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100
_EPS = 1e-10
_BITS = 2 ** np.arange(len(OVERLAPS))


def matches(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is to be known of one image.

    Args:
        found: `boxes` (n, 4), left, top, right and bottom, `labels` (n,) and `scores` (n,).
        truth: `boxes` (m, 4), `labels` (m,), `crowds` bool (m,), and `image` (1,), its number.

    Returns:
        `detections`, float64 (k, 5): image, label, score, for which overlaps it is right, and for
        which it does not count, as bits. `truths`, float64 (labels, 2): label, and how many there
        are that count.
    """
    boxes, labels, scores = (_array(found[name]) for name in ("boxes", "labels", "scores"))
    real, real_labels, crowds = (_array(truth[name]) for name in ("boxes", "labels", "crowds"))
    image, is_crowd = float(truth["image"]), crowds > 0
    rows = [np.zeros((0, 5))]
    for label in np.unique(labels):
        # Of equal scores the earlier one comes first, here and where all are sorted.
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(-scores[mine], kind="stable")][:_MOST]
        same = real_labels == label
        right, out = _matched(boxes[mine], real[same], is_crowd[same])
        columns = [
            np.full(len(mine), image),
            labels[mine],
            scores[mine],
            right @ _BITS,
            out @ _BITS,
        ]
        rows.append(np.stack(columns, axis=1))
    counted, counts = np.unique(real_labels[~is_crowd], return_counts=True)
    return {
        "detections": torch.from_numpy(np.concatenate(rows)),
        "truths": torch.from_numpy(np.stack([counted, counts.astype(np.float64)], axis=1)),
    }


def average_precision(evidence: Mapping[str, Tensor]) -> dict[int, Numbers]:
    """The average precision of each class that occurs, for each overlap.

    Args:
        evidence: what `matches` has found in all images, row by row, in any order of the images.
    """
    detections, truths = (_array(evidence[name]) for name in ("detections", "truths"))
    # By score, of equal ones by image, and else as they are, which is by place in the image.
    detections = detections[np.lexsort((detections[:, 0], -detections[:, 2]))]
    found = {}
    for label in np.unique(truths[:, 0]):
        count = float(truths[truths[:, 0] == label, 1].sum())
        rows = detections[detections[:, 1] == label]
        right, out = ((rows[:, n, None].astype(np.int64) & _BITS) > 0 for n in (3, 4))
        counts = zip(right.T, out.T, strict=True)
        found[int(label)] = np.array([_precision(r, o, count) for r, o in counts])
    return found


def _precision(is_right: NDArray[np.bool_], is_out: NDArray[np.bool_], count: float) -> float:
    right = np.cumsum(is_right & ~is_out).astype(np.float64)
    wrong = np.cumsum(~is_right & ~is_out)
    precision = right / np.maximum(right + wrong, np.spacing(1.0))
    # At each recall the best precision that has this recall or a higher one.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / count, _RECALLS, side="left")
    return float(np.append(best, 0.0)[np.minimum(places, len(best))].mean())


def _matched(
    boxes: Numbers, real: Numbers, is_crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For which overlaps each box, best first, has found one that is there, and a crowd."""
    right, out = np.zeros((2, len(boxes), len(OVERLAPS)), np.bool_)
    if not len(real):
        return right, out
    overlaps = _overlaps(boxes, real, is_crowd)
    wanted = np.minimum(OVERLAPS, 1 - _EPS)[:, None]
    is_free = np.ones((len(OVERLAPS), len(real)), np.bool_)
    every = np.arange(len(OVERLAPS))
    for place, row in enumerate(overlaps):
        is_near = row >= wanted
        for those in (~is_crowd, is_crowd):  # a crowd only where nothing else is left
            may = is_near & is_free & those & ~right[place][:, None]
            # Of equal ones the last.
            best = len(real) - 1 - np.argmax(np.where(may, row, -1.0)[:, ::-1], axis=1)
            hit = may[every, best]
            right[place] |= hit
            out[place] |= hit & is_crowd[best]
            # Any number of boxes may be in one crowd.
            is_free[every[hit], best[hit]] &= is_crowd[best[hit]]
    return right, out


def _overlaps(boxes: Numbers, real: Numbers, is_crowd: NDArray[np.bool_]) -> Numbers:
    """(boxes, real); of a crowd the share of the box that is in it."""
    low = np.maximum(boxes[:, None, :2], real[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], real[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas, real_areas = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, real))
    together = areas[:, None] + np.where(is_crowd, 0, real_areas - common)
    together = np.where(is_crowd, areas[:, None], together)
    none = np.zeros_like(common)
    found: Numbers = np.divide(common, together, out=none, where=together > 0)
    return found


def means(found: Mapping[int, Numbers]) -> dict[str, float]:
    """Means over the classes: of all overlaps, of 0.5 and of 0.75; 0 where no class occurs."""
    table: Sequence[Numbers] = list(found.values()) or [np.zeros(len(OVERLAPS))]
    each = np.mean(table, axis=0)
    return {"map": float(each.mean()), "map_50": float(each[0]), "map_75": float(each[5])}


def _array(tensor: Tensor) -> Numbers:
    found: Numbers = tensor.detach().double().cpu().numpy()
    return found
