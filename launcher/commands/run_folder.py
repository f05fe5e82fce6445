"""Which run a user means: by its folder, or by the Slurm job that has it.

The package `slurm` imports this one; so it is named here and not imported, as the workers are.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.default_folder import LATEST, entered
from bundlerun.launcher.run_folder.paths import RunPaths

_REPORT = "bundlerun.slurm.report"


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that `run_paths` reads."""
    parser.add_argument(
        "run_dir",
        nargs="?",
        default=str(LATEST),
        metavar="RUN_DIR|JOB",
        help="run folder, or Slurm job (default: %(default)s)",
    )


def run_paths(text: str) -> RunPaths:
    """The run in the folder `text`, or of the job with that number.

    Raises:
        ConfigError: there is no such folder, no run in it, or the job has none.
        NodeError: it is a number, and here is no Slurm.
    """
    if text.isdecimal() and not Path(text).exists():
        return RunPaths(importlib.import_module(_REPORT).run_dir_of_job(int(text)))
    paths = RunPaths(entered(Path(text)))
    if not paths.root.is_dir():
        raise ConfigError(f"there is no run folder {text!r}; give that of a run")
    if not paths.is_used:
        raise ConfigError(f"no run has begun in {text!r}; give the folder of a run")
    return paths


def job_report(paths: RunPaths) -> dict[str, Any] | None:
    """How the Slurm job of a run stands; None for a run without one."""
    if not paths.slurm_job.exists():
        return None
    found: dict[str, Any] | None = importlib.import_module(_REPORT).report(paths.root)
    return found
