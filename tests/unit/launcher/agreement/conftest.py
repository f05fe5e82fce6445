"""The run folder of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")
