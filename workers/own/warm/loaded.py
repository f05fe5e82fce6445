"""What the server keeps: torch, and how a program is run in a process that has it."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence

from bundlerun.launcher.layout.hardware import THREADS_VARIABLE
from bundlerun.workers.own.warm.start import Program


def load() -> Program:
    """Imports torch and what a protected loop uses, without a thread, as there will be forks."""
    before = os.environ.get(THREADS_VARIABLE)
    os.environ[THREADS_VARIABLE] = "1"
    gc.disable()
    try:
        from bundlerun.workers.own import script
    finally:
        gc.freeze()  # forks share these pages as long as no collection writes into them
        gc.enable()
        os.environ.pop(THREADS_VARIABLE)
        if before is not None:
            os.environ[THREADS_VARIABLE] = before

    def program(file: str, arguments: Sequence[str]) -> int:
        return script.main(("", file, *arguments))

    return program
