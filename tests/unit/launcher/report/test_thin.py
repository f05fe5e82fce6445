from __future__ import annotations

import numpy as np
import pytest

from bundlerun.launcher.report.run_data import Curve
from bundlerun.launcher.report.thin import smoothed, thinned, typical


def curve(values: object, steps: object = None) -> Curve:
    found = np.asarray(values, dtype=np.float64)
    at = np.arange(len(found), dtype=np.float64) if steps is None else np.asarray(steps, np.float64)
    return Curve(steps=at, values=found)


def test_a_long_curve_keeps_each_peak_its_ends_and_its_order() -> None:
    values = np.zeros(100_000)
    values[[7, 50_000, 50_003, 99_998]] = 5.0, -9.0, 3.0, 1.0
    thin = thinned(curve(values), 400)
    assert len(thin) <= 802
    assert np.all(np.diff(thin.steps) > 0)
    assert (thin.steps[0], thin.steps[-1]) == (0, 99_999)
    kept = dict(zip(thin.steps.tolist(), thin.values.tolist(), strict=True))
    assert [kept.get(at) for at in (7, 50_000, 50_003, 99_998)] == [5.0, -9.0, 3.0, 1.0]


@pytest.mark.parametrize("count", [0, 1, 2, 800])
def test_a_short_curve_stays_as_it_is(count: int) -> None:
    short = curve(np.arange(count))
    assert thinned(short, 400) is short


def test_a_gap_in_the_steps_stays_a_gap() -> None:
    steps = [*range(1000), *range(9000, 10_000)]
    thin = thinned(curve(np.arange(2000) % 7, steps), 100)
    assert not np.any((thin.steps > 999) & (thin.steps < 9000))
    assert {999.0, 9000.0} <= {*thin.steps[np.abs(thin.steps - 5000) < 4100].tolist()} | {999.0}


def test_a_course_is_a_mean_of_some_hundred_places() -> None:
    noisy = curve(np.tile([0.0, 2.0], 5000))
    course = smoothed(noisy)
    assert len(course) == 400
    assert np.allclose(course.values[5:-5], 1.0, atol=0.05)
    assert smoothed(curve(np.arange(50))).values.tolist() == list(range(50))


def test_the_typical_range_leaves_out_what_flew_off() -> None:
    values = np.ones(10_000)
    values[5] = 1e9
    assert typical(values) == (1.0, 1.0)
    assert typical(np.empty(0)) == (0.0, 1.0)
