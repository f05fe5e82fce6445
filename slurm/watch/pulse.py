"""A file in the run folder that changes as long as the job's first node lives."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

BEAT_S = 1.0


@contextmanager
def pulse(paths: RunPaths, start: str) -> Iterator[None]:
    """Writes it, in a thread, while in its `with`.

    Args:
        start: what tells this start of the job from others.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_beat, args=(paths, start, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        with suppress(OSError):
            paths.slurm_pulse.unlink(missing_ok=True)


def _beat(paths: RunPaths, start: str, is_over: threading.Event) -> None:
    for number in itertools.count():
        with suppress(OSError):  # a full disk: the network still shows that this node lives
            write_text(paths.slurm_pulse, f"{start} {number}\n")
        if is_over.wait(BEAT_S):
            return


def read_pulse(paths: RunPaths) -> str:
    """What the file says; empty where it cannot be read."""
    try:
        return paths.slurm_pulse.read_text(encoding="utf-8")
    except OSError:
        return ""
