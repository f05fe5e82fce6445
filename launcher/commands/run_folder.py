"""Which run a user means: by its folder, or by the Slurm job that has it.

The package `slurm` imports this one; so it is named here and not imported, as the workers are.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from launcher.paths import RunPaths

_REPORT = "slurm.report"


def run_paths(text: str) -> RunPaths:
    """The run in the folder `text`, or of the job with that number.

    Raises:
        ConfigError: the job has no run folder.
        NodeError: it is a number, and here is no Slurm.
    """
    if text.isdecimal() and not Path(text).exists():
        return RunPaths(importlib.import_module(_REPORT).run_dir_of_job(int(text)))
    return RunPaths(Path(text))


def job_report(paths: RunPaths) -> dict[str, Any] | None:
    """How the Slurm job of a run stands; None for a run without one."""
    if not paths.slurm_job.exists():
        return None
    found: dict[str, Any] | None = importlib.import_module(_REPORT).report(paths.root)
    return found
