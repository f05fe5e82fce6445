"""Keeps RUN_DIR/report.html current while a run goes on: by one node, at the lowest priority.

No rank has a part in it, and this process only starts another one from time to time. Where
matplotlib is not installed nothing is started.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths

MODULE = "bundlerun.launcher.report.keep"
_LONGEST_S = 300.0
_LAST_S = 20.0
"""How long the end of a run may wait for the last one."""
_LAST_STOPPED_S = 3.0
"""The same where it was told to stop: who has said so may be in a hurry."""
_MOST_WORK = 0.01
"""Share of its time that making reports may take."""


def report_command(paths: RunPaths, is_last: bool) -> list[str]:
    """What makes a report; the last one is not made at the lowest priority."""
    last = ["--last"] if is_last else []
    return [sys.executable, "-m", MODULE, str(paths.root.absolute()), *last]


@contextmanager
def kept_report(
    paths: RunPaths,
    claim: Claim | None,
    *,
    every_s: float,
    command: Callable[[RunPaths, bool], Sequence[str]] = report_command,
    most_work: float = _MOST_WORK,
) -> Iterator[None]:
    """Inside, the report is made every now and then, and at the end once more.

    A run that is over before the first one gets none.

    Args:
        paths: of the run.
        claim: whoever holds the run folder makes it; None: nobody does.
        every_s: seconds between two, at least; 0: none is made.
        command: of the process that makes one.
        most_work: share of its time that making them may take.
    """
    if claim is None or not every_s or find_spec("matplotlib") is None:
        yield
        return
    keeper = _Keeper(paths, claim, every_s, command, most_work)
    keeper.start()
    try:
        yield
    finally:
        keeper.end()


class _Keeper(threading.Thread):
    def __init__(
        self,
        paths: RunPaths,
        claim: Claim,
        every_s: float,
        command: Callable[[RunPaths, bool], Sequence[str]],
        most_work: float,
    ) -> None:
        super().__init__(name="bundlerun-report", daemon=True)
        self._paths = paths
        self._claim = claim
        self._every_s = every_s
        self._command = command
        self._most_work = most_work
        self._is_over = threading.Event()
        self._has_made = False
        self._seen: tuple[int, ...] = ()

    def run(self) -> None:
        wait_s = self._every_s
        while not self._is_over.wait(wait_s):
            begun = time.monotonic()
            if self._claim.is_own and self._has_changed():
                self._has_made = True
                self._make(_LONGEST_S, is_last=False)
            wait_s = max(self._every_s, (time.monotonic() - begun) / self._most_work)

    def _has_changed(self) -> bool:
        """Whether there is a line more than last time."""
        files = [self._paths.metrics, *self._paths.events.glob("*.jsonl"), self._paths.outcome]
        try:
            seen = tuple(file.stat().st_size for file in files if file.exists())
        except OSError:
            return False
        had, self._seen = self._seen, seen
        return seen != had

    def _make(self, longest_s: float, *, is_last: bool) -> None:
        try:
            made = subprocess.Popen(
                self._command(self._paths, is_last),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:  # no more processes, no memory: the run needs them more
            return
        ends_at = time.monotonic() + longest_s
        while made.poll() is None:
            # The end of the run waits for no report but the last.
            if time.monotonic() > ends_at or (self._is_over.is_set() and not is_last):
                made.kill()
                made.wait()
                return
            time.sleep(0.05)

    def end(self) -> None:
        """Has the last one made, if there was one before."""
        self._is_over.set()
        self.join(_LAST_S)
        if self._has_made and self._claim.is_own and self._has_changed():
            outcome = read_outcome(self._paths)
            is_over = outcome is not None and outcome.state in ("done", "failed")
            self._make(_LAST_S if is_over else _LAST_STOPPED_S, is_last=True)
