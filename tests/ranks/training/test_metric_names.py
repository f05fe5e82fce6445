"""Metrics come to the same whoever has work, declared or not; names that do not fit are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.state.test_resume import history, trains
from tests.ranks.training.test_kinds import CONFIG


def numbers(data: str, devices: tuple[int, ...], folder: Path, **changes: Any) -> list[Any]:
    """Names and values of all rows that have metrics."""
    config = replace(
        CONFIG, data=data, microbatch_size=4, validate=True, run_dir=str(folder / "run"), **changes
    )
    run_ranks(devices, trains(config), folder)
    rows = [row for row in history(folder) if row["kind"] in ("step", "eval")]
    assert [len(row["metrics"]) for row in rows] == [2] * 8
    return [(row["kind"], {**row["metrics"], "loss": row["loss"]}) for row in rows]


def test_declared_or_not_metrics_are_those_of_one_rank(tmp_path: Path) -> None:
    alone = numbers("declared", (1,), tmp_path / "alone")
    assert {found["size"] for _, found in alone} == {1.0}, "one for each sample"
    two_stages: dict[str, Any] = {"shape": Shape((1, 1)), "cut": ("head",)}
    for name, devices, changes in (("three", (1, 1, 1), {}), ("cut", (6,), two_stages)):
        for data in ("declared", "agreed"):
            # Two micro-batches a step: one bundle of three has nothing to do.
            folder = tmp_path / f"{data} {name}"
            found = numbers(data, devices, folder, snapshot="on", **changes)
            for (kind, values), (kind_alone, expected) in zip(found, alone, strict=True):
                assert kind == kind_alone
                assert values == pytest.approx(expected, rel=1e-12)
            order = [row["metrics"] for row in history(folder) if "metrics" in row]
            names = ["size", "mae"] if data == "declared" else ["mae", "size"]
            assert all(list(metrics) == names for metrics in order)


def test_a_metric_that_was_not_declared_ends_the_run_by_its_name(tmp_path: Path) -> None:
    config = replace(CONFIG, data="another name", run_dir=str(tmp_path / "run"))
    ends = outcomes((1, 1), trains(config), tmp_path, 60)
    told = [text for text in ends.values() if "ConfigError" in text]
    assert told
    assert all("metrics() gives 'sizes'" in text and "nearest: size" in text for text in told)
    assert not RunPaths(tmp_path / "run").metrics.read_text().count('"step"')
