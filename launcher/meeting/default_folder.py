"""The default run folder: a new one each time, the same on all nodes of the run.

runs/20261127-144012-3f9a     one process or one node
runs/slurm-7.0                a job step of Slurm, over all its starts; not what is typed in one
runs/NAME                     several nodes of the job --rdzv-id NAME, or torchrun's
runs/latest                   a link to the newest
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.meeting.site import site_job
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.launcher.run_folder.latest import LATEST, RUNS

NO_FOLDER = (
    "several nodes need one run folder, and nothing here says which; give all of them the same "
    "--run-dir, on a file system that they share"
)


def new_folder() -> Path:
    """A name that no other run has."""
    return RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def folder_of_job(name: str) -> Path:
    """The folder of the job that all its nodes know by this name."""
    return RUNS / quote(name, safe=" @+=,")


def default_folder(
    launch: Resolved[LaunchConfig], environ: Mapping[str, str], *, is_typed: bool
) -> Path | None:
    """The run folder of what `bundlerun run` starts; None where several nodes would differ.

    Args:
        is_typed: whether it was typed at a terminal, perhaps in a job step that is a shell.
    """
    job = site_job(environ)
    is_submitted = job is not None and not (is_typed and job.may_be_shell)
    if job is not None and is_submitted and not launch.value.standalone:
        return folder_of_job(job.folder_name)
    if launch.value.max_nodes == 1:
        return new_folder()
    # The default --rdzv-id would be the same for every job, and so would its folder be.
    is_named = launch.sources.get("rdzv_id", "default") != "default"
    return folder_of_job(launch.value.rdzv_id) if is_named else None


def entered(folder: Path) -> Path:
    """The folder itself where it is a link, which may soon point to another run."""
    return folder.parent / folder.readlink() if folder.is_symlink() else folder


def is_latest(folder: Path) -> bool:
    """Whether it is the link that every new run moves, from whatever folder it is seen."""
    return folder.absolute().parts[-2:] == LATEST.parts and folder.is_symlink()


def point_latest(folder: Path) -> None:
    """Makes `runs/latest` lead to a folder of `runs`, unless something else has that name.

    A convenience: if it cannot be made, the run continues without it.
    """
    if folder.absolute().parent != RUNS.absolute() or (LATEST.exists() and not LATEST.is_symlink()):
        return
    # Renamed over the old link, so that no reader finds none.
    beside = name_beside(LATEST)
    with suppress(OSError):
        beside.symlink_to(folder.name)
        beside.replace(LATEST)
