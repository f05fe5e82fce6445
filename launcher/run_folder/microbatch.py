"""The size of micro-batches that the first start of a run has settled, kept for later ones."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk says."""


def kept_samples(run_dir: str, batch_size: int) -> int:
    """What an earlier start of the run has settled for this batch size; 0 where none has."""
    if not run_dir:
        return 0  # the folder that we are in may be another run's
    try:
        kept = json.loads(RunPaths(Path(run_dir)).microbatch.read_text(encoding="utf-8"))
        samples = int(kept["samples"])
        # Settled for another batch size it says nothing about this one.
        return samples if kept["batch_size"] == batch_size and batch_size % samples == 0 else 0
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0


def keep_samples(paths: RunPaths, batch_size: int, samples: int) -> None:
    """Keeps for later starts what this one has settled.

    Raises:
        NodeError: the run folder cannot be written; a full disk only gives a warning.
    """
    text = json.dumps({"batch_size": batch_size, "samples": samples})
    try:
        write_text(paths.microbatch, text + "\n")
    except OSError as exc:
        if exc.errno not in _FULL:
            raise NodeError(
                f"cannot write --run-dir {str(paths.root)!r}: {exc.strerror}; give a folder that "
                "you may write"
            ) from exc
        log.warning(
            "cannot write %s: %s; give later starts --microbatch-size %d",
            paths.microbatch,
            exc.strerror,
            samples,
        )
