from __future__ import annotations

import pytest

from bundlerun.launcher.layout.idle import Batch, idle_share, num_workless, warnings
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology


def pipeline(*shape: int) -> Pipeline:
    return Pipeline.of(Topology(Shape(shape), (sum(shape),)), "auto")


@pytest.mark.parametrize(
    ("shape", "size", "samples", "num_bundles", "idle"),
    [
        ((1,), 256, 32, 8, 0),
        ((1,), 96, 32, 2, 1 / 4),  # one has two, the other one
        ((1, 1), 64, 32, 1, 1 / 3),  # the picture of launcher/layout/idle.py
        ((1, 1), 256, 8, 4, 1 / 9),
        ((1, 1), 256, 32, 20, 1 - 8 / 40),
    ],
)
def test_idle_time_is_what_the_schedule_leaves(
    shape: tuple[int, ...], size: int, samples: int, num_bundles: int, idle: float
) -> None:
    batch = Batch(size=size, samples=samples)
    assert idle_share(pipeline(*shape), batch, num_bundles) == pytest.approx(idle)


def test_a_wide_stage_has_as_many_times_the_work() -> None:
    assert idle_share(pipeline(2, 1), Batch(size=128, samples=8), 1) < 0.15


def test_a_bubble_is_told_with_its_figure_and_the_mend() -> None:
    (line,) = warnings(pipeline(1, 1), Batch(size=256, samples=32), 4)
    assert "33% of the devices' time is idle" in line
    assert "--microbatch-size 8 leaves 11%" in line
    assert not list(warnings(pipeline(1, 1), Batch(size=256, samples=8), 4))


def test_bundles_without_work_are_counted() -> None:
    batch = Batch(size=256, samples=32)
    assert num_workless(batch, 20) == 12
    first, second = warnings(pipeline(1, 1), batch, 20)
    assert "12 of 20 bundles have no work" in first
    assert "80%" in second
    assert "--batch-size 5120 --microbatch-size 32 leaves 11%" in second


def test_few_samples_for_batch_norms_are_said() -> None:
    (line,) = warnings(pipeline(1, 1), Batch(size=32, samples=8), 1)
    assert "--microbatch-size 4" in line
    assert "only 4 samples" in line
    assert "--batch-size 64" in line


def test_a_step_of_many_microbatches_is_not_simulated() -> None:
    assert 0 < idle_share(pipeline(1, 1), Batch(size=1 << 30, samples=1), 1) < 1e-6
    near = idle_share(pipeline(1, 1, 1), Batch(size=199, samples=1), 1)
    assert idle_share(pipeline(1, 1, 1), Batch(size=200, samples=1), 1) == pytest.approx(
        near, rel=0.01
    )
