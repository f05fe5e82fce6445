from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.state.checkpoint import Checkpoints


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run 'one'")


@pytest.fixture
def checkpoints(paths: RunPaths) -> Checkpoints:
    return Checkpoints(paths, keep=2)
