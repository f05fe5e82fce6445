"""How the progress of a run reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.workers.report.words import Course

COURSE = Course(steps_per_epoch=100, epochs=90, max_steps=0, unit="images", shares=("top1",))
ROW = {"step": 129, "epoch": 1, "loss": 1.23456, "lr": 0.05, "metrics": {"top1": 0.5}}


def test_a_step_says_which_of_how_many_and_how_long_the_rest_takes() -> None:
    assert COURSE.step_text(ROW, 60.25, 3723.4) == (
        "step 130/9000  epoch 2/90  loss 1.2346  top1 50.00%  lr 0.05  60.2 images/s  1:02:03 left"
    )
    assert COURSE.bar_text(ROW, 60.25, 7.0) == (
        "step 130/9000, loss 1.2346, lr 0.05, 60.2 images/s, 0:00:07 left"
    )
    assert COURSE.bar_text(ROW, 60.25, 7.0, room=30) == "loss 1.2346, 0:00:07 left"
    assert COURSE.bar_text(ROW, 60.25, 7.0, room=1) == "0:00:07 left"


def test_only_shares_are_told_in_percent() -> None:
    metrics = {"top1": 0.125, "mae": 8354.75, "bleu": 0.3}
    assert COURSE.metrics_text(metrics) == "top1 12.50%  mae 8355  bleu 0.3"
    assert COURSE.step_text(ROW | {"metrics": {}}, 1.0, 1.0).count("  ") == 5


@pytest.mark.parametrize(
    ("max_steps", "num_steps", "by_epoch"),
    [(0, 9000, {0: 100, 89: 100}), (130, 130, {0: 100, 1: 30, 2: 0}), (99999, 9000, {5: 100})],
)
def test_a_run_may_end_inside_an_epoch(
    max_steps: int, num_steps: int, by_epoch: dict[int, int]
) -> None:
    course = replace(COURSE, max_steps=max_steps)
    assert course.num_steps == num_steps
    assert {epoch: course.steps_in(epoch) for epoch in by_epoch} == by_epoch


def test_of_many_metrics_the_first_are_told() -> None:
    course = Course(steps_per_epoch=1, epochs=1, max_steps=0, unit="images", shares=("m0",))
    text = course.metrics_text({f"m{n}": 0.5 for n in range(40)})
    assert text.startswith("m0 50.00%  m1 0.5  ")
    assert len(text.split("  ")) == 8
