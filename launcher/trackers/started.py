"""Starts the processes that tell trackers of a run, and ends them; the reporting rank has it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Collection, Sequence

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.known import check_trackers

LONGEST_WAIT_S = 20.0
"""For trackers, at the end of a run."""
log = logging.getLogger(__name__)


class StartedTrackers:
    """A process per tracker; each ends by itself when this one is gone.

    Args:
        paths: of the run.
        names: of the trackers.

    Raises:
        ConfigError: there is no such tracker, or its package is missing.
    """

    def __init__(self, paths: RunPaths, names: Sequence[str]) -> None:
        check_trackers(names)
        self._root = paths.root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            command = [sys.executable, "-m", "bundlerun.launcher.trackers"]
            try:
                self._processes[name] = subprocess.Popen(
                    [*command, str(paths.root.absolute()), name], stdin=subprocess.PIPE
                )
            except OSError as exc:
                log.warning("tracker %s does not start: %s; training goes on", name, exc.strerror)

    @property
    def processes(self) -> Collection[subprocess.Popen[bytes]]:
        """One per tracker."""
        return self._processes.values()

    def close(self, limit_s: float = LONGEST_WAIT_S) -> None:
        """Waits, not longer than the limit, until the trackers have everything."""
        ends = time.monotonic() + limit_s
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()  # its sign that nothing more comes
        for name, process in self._processes.items():
            try:
                is_whole = process.wait(max(0.0, ends - time.monotonic())) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                is_whole = False
            if not is_whole:
                log.warning(
                    "tracker %s does not have everything; bundlerun track %s --tracker %s tells "
                    "it the rest", name, self._root, name,
                )  # fmt: skip
