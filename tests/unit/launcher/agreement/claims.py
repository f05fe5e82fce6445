"""Claims of a run folder as processes of this and other machines would leave them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.paths import RunPaths


def claim_of(paths: RunPaths, job: str, said: list[str] | None = None, **holder: object) -> Claim:
    me = replace(Holder.of_process(job, "a test"), **holder)
    return Claim(paths, me, (said if said is not None else []).append)


def put(paths: RunPaths, number: int, **holder: object) -> Path:
    """A claim as another process would have left it."""
    path = paths.claims / f"{number:06d}.json"
    write_text(path, json.dumps(asdict(replace(Holder.of_process("other", "a test"), **holder))))
    return path


@contextmanager
def another_process() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def touched(path: Path) -> Iterator[None]:
    """Its holder lives, on a machine whose clock is not ours."""
    is_over = threading.Event()

    def touch() -> None:
        while not is_over.wait(0.02):
            os.utime(path, (1.0, time.monotonic()))

    other = threading.Thread(target=touch)
    other.start()
    try:
        yield
    finally:
        is_over.set()
        other.join()


def parents() -> dict[str, object]:
    """The fields of a holder that is another process, and alive as long as this one."""
    holder = Holder.of_process("", "", pid=os.getppid())
    return {"pid": holder.pid, "started": holder.started}


def names(paths: RunPaths) -> list[str]:
    return sorted(path.name for path in paths.claims.iterdir())
