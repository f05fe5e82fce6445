"""Which of two validations is the better one, as the recipe says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.report.best import Best
from bundlerun.workers.report.reporter import Reporter
from bundlerun.workers.report.words import Course
from bundlerun.workers.step import StepSums


def best_of(said: object = None) -> Best:
    return Best.said(said)


METRICS = {"mae": 3.0, "top1": 0.5}


@pytest.mark.parametrize(
    ("best", "metrics", "score"),
    [
        (best_of(), METRICS, 3.0),
        (best_of(), {}, -7.0),
        (best_of(("mae", "min")), METRICS, -3.0),
        (best_of(("top1", "max")), METRICS, 0.5),
        (best_of(["loss", "min"]), METRICS, -7.0),
    ],
)
def test_a_higher_score_is_better(best: Best, metrics: dict[str, float], score: float) -> None:
    assert best.score(7.0, metrics) == score


@pytest.mark.parametrize("said", ["mae", ("mae", "lower"), ("mae",), (3, "min")])
def test_what_a_recipe_may_say_is_told(said: object) -> None:
    with pytest.raises(ConfigError, match=r'such as best = \("mae", "min"\)'):
        best_of(said)


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'mea', which metrics.. does not give; nearest: mae"):
        best_of(("mea", "min")).score(1.0, METRICS)


@pytest.mark.parametrize(
    ("best", "epoch"), [(best_of(), 2), (best_of(("mae", "min")), 1), (best_of(("loss", "min")), 3)]
)
def test_the_summary_keeps_the_best_and_says_what_nobody_said(
    best: Best, epoch: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = TrainConfig(data="x", run_dir=str(tmp_path), epochs=4)
    course = Course.of(config, 1, "samples")
    with Reporter(config, Topology(Shape((1,)), (1,)), course, best) as reporter:
        found = [(float("nan"), float("nan")), (2.0, 1.0), (3.0, 2.0), (2.5, 0.5)]
        for number, (mae, loss) in enumerate(found):
            reporter.validated(number, number, StepSums(loss=loss, metrics={"mae": mae}))
        assert reporter._summary.best["epoch"] == epoch
    told = [
        r for r in caplog.messages if r.startswith("the best checkpoint is the one with the hig")
    ]
    assert len(told) == (not best.name)


def test_the_best_of_a_recipe_without_metrics_has_the_lowest_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = TrainConfig(data="x", run_dir=str(tmp_path), epochs=4)
    course = Course.of(config, 1, "samples")
    with Reporter(config, Topology(Shape((1,)), (1,)), course, best_of()) as reporter:
        for epoch, loss in enumerate([2.0, 0.5, 3.0, float("nan")]):
            reporter.validated(epoch, epoch, StepSums(loss=loss, metrics={}))
        assert reporter._summary.best == {"loss": 0.5, "epoch": 1}
    assert "the best checkpoint" not in caplog.text


@pytest.mark.parametrize("best", [best_of(), best_of(("mae", "min"))])
def test_a_best_of_before_without_what_decides_now_counts_as_none(
    best: Best, tmp_path: Path
) -> None:
    config = TrainConfig(data="x", run_dir=str(tmp_path), epochs=4)
    course = Course.of(config, 1, "samples")
    with Reporter(config, Topology(Shape((1,)), (1,)), course, best) as reporter:
        reporter._summary.best = {"top1": 9.0, "loss": 0.5, "epoch": 0}
        reporter.validated(1, 1, StepSums(loss=0.4, metrics={"mae": 0.1, "top1": 0.6}))
        assert reporter._summary.best == {"mae": 0.1, "top1": 0.6, "loss": 0.4, "epoch": 1}
