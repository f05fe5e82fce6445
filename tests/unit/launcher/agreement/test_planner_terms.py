"""A configuration in the planner's words."""

from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.agreement.planner_terms import wanted
from bundlerun.launcher.choices import Reading
from bundlerun.launcher.config import TrainConfig


def test_weights_that_a_run_begins_with_are_for_the_planner_to_know(tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    old.write_bytes(b"as torch wrote before 1.6")
    plain = TrainConfig(data="synthetic", model="resnet18")
    assert wanted(plain).begins_with is Reading.NOTHING
    given = TrainConfig(data="synthetic", model="resnet18", init_from=str(old))
    assert wanted(given).begins_with is Reading.WHOLE
