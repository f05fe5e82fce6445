"""The mark on a snapshot that holds what is on no disk: whose it is, so that nobody else sweeps it.

It is set where a checkpoint could not be written, and goes with the next one that could. Only the
nodes of bundle 0 hear of that one: on others, the mark counts no more as soon as it is there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths, SnapshotPaths

_MB = 1e6

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is unsaved.

    run_dir: of the run, as its ranks saw it. step: the newest one without a checkpoint.
    """

    run_dir: str
    step: int


def set_mark(folder: Path, mark: Mark) -> None:
    """Marks a snapshot folder; where there is no room for that, says so."""
    try:
        write_text(SnapshotPaths.mark(folder), json.dumps(asdict(mark)))
    except OSError as exc:
        log.warning(
            "cannot mark %s as unsaved: %s; another run may remove it in time",
            folder, exc.strerror,
        )  # fmt: skip


def read_mark(folder: Path) -> Mark | None:
    """What a snapshot folder has that is on no disk; None: nothing."""
    try:
        return Mark(**json.loads(SnapshotPaths.mark(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def unsaved(folder: Path) -> Mark | None:
    """The mark of a snapshot folder while its run has no checkpoint as new; else None."""
    mark = read_mark(folder)
    if mark is None:
        return None
    try:
        # Only nodes of bundle 0 remove the mark; on others, it ends by what is on disk.
        saved = survey(RunPaths(Path(mark.run_dir))).found
    except OSError:  # it cannot be seen from here
        return mark
    return None if any(checkpoint.step >= mark.step for checkpoint in saved) else mark


def tell_marked(folders: Iterable[Path]) -> None:
    """Says which snapshot folders are kept for their runs: memory must not fill without a word."""
    for folder in folders:
        mark = unsaved(folder)
        if mark is not None:
            log.warning(
                "%s (%.1f MB) keeps step %d of the run in %s, which is on no disk: start that run "
                "again on this node to save it, or give it up: rm -r %s",
                folder, _size(folder) / _MB, mark.step, mark.run_dir, folder,
            )  # fmt: skip


def _size(folder: Path) -> int:
    """Bytes in a folder from which files may go meanwhile."""
    num_bytes = 0
    for path in folder.iterdir():
        try:
            num_bytes += path.stat().st_size
        except FileNotFoundError:
            continue
    return num_bytes
