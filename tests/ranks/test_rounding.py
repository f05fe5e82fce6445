"""What the exchange between nodes rounds away, and when the next step makes up for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config import TrainConfig
from tests.ranks.harness import run_ranks
from tests.ranks.test_kinds import CONFIG
from tests.ranks.test_resume import history, trains


@pytest.fixture(autouse=True)
def _short_first_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are in buckets of their own dtype; the first is float64, which nothing rounds."""
    monkeypatch.setattr("workers.bucket._MOST_WIDENED", 0)


def config(folder: Path, data: str) -> TrainConfig:
    return replace(
        CONFIG, data=data, run_dir=str(folder / "run"), precision="float32", lr=0.01,
        exchange_dtype="bfloat16", sync="local-master",
    )  # fmt: skip


def test_a_step_that_is_left_out_leaves_nothing_to_make_up_for(tmp_path: Path) -> None:
    run_ranks((1, 1), trains(replace(config(tmp_path, "nan"), on_nan="skip")), tmp_path)
    steps = [row for row in history(tmp_path) if row["kind"] == "step"]
    assert len(steps) == 6
    # One sample in each epoch is no number.
    assert sum("left_out" in row for row in steps) == 2
