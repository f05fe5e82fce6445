"""Pure: curves of many points made of few, so that nobody sees a difference."""

from __future__ import annotations

import numpy as np

from bundlerun.launcher.report.run_data import Column, Curve


def thinned(curve: Curve, pixels: int) -> Curve:
    """A curve with at most two points per pixel: its least and its greatest value there.

    So each peak stays, however narrow it is.

    Args:
        pixels: columns that the curve is drawn on.
    """
    count = len(curve)
    if count <= 2 * pixels:
        return curve
    steps, values = curve.steps, curve.values
    # By place on the axis, not by number: a run whose steps have gaps keeps them.
    column = ((steps - steps[0]) * (pixels / (steps[-1] - steps[0]))).astype(np.int64)
    begins = np.flatnonzero(np.diff(np.minimum(column, pixels - 1), prepend=-1))
    ends = np.append(begins[1:], count)
    kept = {
        index
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        for index in (
            begin + int(values[begin:end].argmin()),
            begin + int(values[begin:end].argmax()),
        )
    }
    # The ends stay, so that a curve goes from its first step to its last.
    chosen = np.array(sorted(kept | {0, count - 1}))
    return Curve(steps=steps[chosen], values=values[chosen])


SMOOTH_PARTS = 100
"""Of a curve's length; each place of its course is the mean over about one."""


def smoothed(curve: Curve, *, parts: int = SMOOTH_PARTS) -> Curve:
    """The mean around each of up to 400 places, over a part of the curve's length."""
    count = len(curve)
    if count < 2 * parts:
        return curve
    half = max(1, count // parts // 2)
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    places = np.unique(np.linspace(0, count - 1, 4 * parts).astype(np.int64))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, count)
    means: Column = (sums[high] - sums[low]) / (high - low)
    return Curve(steps=curve.steps[places], values=means)


def typical(values: Column) -> tuple[float, float]:
    """The range that nearly all values are in: an axis is not for one that flew off."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(high)
