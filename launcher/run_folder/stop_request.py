"""The file that asks a run to stop in good order; its reporter looks for it."""

from __future__ import annotations

import json
from contextlib import suppress

from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths


def request_stop(paths: RunPaths, why: str) -> None:
    """Asks the run in this folder to stop.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(paths.drain, json.dumps({"why": why}) + "\n")


def forget_request(paths: RunPaths) -> None:
    """Removes the request: the run that it was for has ended."""
    with suppress(OSError):  # a folder that is read-only now; the next run obeys it, and says so
        paths.drain.unlink(missing_ok=True)
