"""When a job that starts again and again is not to do so once more."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.own.barren import count_start


def test_three_starts_may_begin_after_one_step_and_a_new_agent_counts_anew(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for step in (0, 0, 0, 4, 4, 4):
        count_start(paths, step, is_first=False)
    with pytest.raises(ConfigError, match="3 starts in a row have finished no step after step 4"):
        count_start(paths, 4, is_first=False)
    count_start(paths, 4, is_first=True)
    count_start(paths, 5, is_first=False)
    paths.starts.write_text("{torn")
    count_start(paths, 5, is_first=False)
