"""A file in the run folder that changes as long as the job's first node lives."""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

BEAT_S = 1.0


class Pulse:
    """Writes it, in a thread, while in its `with`.

    Args:
        start: what tells this start of the job from others.
    """

    def __init__(self, paths: RunPaths, start: str) -> None:
        self._paths = paths
        self._start = start
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        for number in itertools.count():
            with suppress(OSError):  # a full disk: the network still shows that this node lives
                write_text(self._paths.slurm_pulse, f"{self._start} {number}\n")
            if self._is_over.wait(BEAT_S):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        with suppress(OSError):
            self._paths.slurm_pulse.unlink(missing_ok=True)


def read_pulse(paths: RunPaths) -> str:
    """What the file says; empty where it cannot be read."""
    try:
        return paths.slurm_pulse.read_text(encoding="utf-8")
    except OSError:
        return ""
