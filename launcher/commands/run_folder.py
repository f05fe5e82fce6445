"""Which run a user means: by its folder, or by the job of a batch system that has it."""

from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.default_folder import entered
from bundlerun.launcher.meeting.site import run_dir_of_job
from bundlerun.launcher.run_folder.paths import RunPaths


def run_paths(text: str) -> RunPaths:
    """The run in the folder `text`, or of the job with that number.

    Raises:
        ConfigError: there is no such folder, no run in it, or the job has none.
        NodeError: it is a number, and no batch system answers.
    """
    # A folder with such a name takes precedence over a job.
    if text.isdecimal() and not Path(text).exists():
        return RunPaths(run_dir_of_job(int(text)))
    paths = RunPaths(entered(Path(text)))
    if not paths.root.is_dir():
        raise ConfigError(f"there is no run folder {text!r}; give that of a run")
    if not paths.is_used:
        raise ConfigError(f"no run has begun in {text!r}; give the folder of a run")
    return paths
