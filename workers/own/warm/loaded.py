"""What the server keeps: torch, and how a program is run in a process that has it."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from bundlerun.launcher.layout.hardware import THREADS_VARIABLE
from bundlerun.workers.own.warm.start import Program


def load(more: Sequence[str] = ()) -> Program:
    """Imports torch and what a protected loop uses, without a thread, as there will be forks.

    Args:
        more: names of modules that the program needs and takes long to import.
    """
    before = os.environ.get(THREADS_VARIABLE)
    os.environ[THREADS_VARIABLE] = "1"
    gc.disable()
    try:
        from bundlerun.workers.own import script

        if find_spec("torchvision"):  # as for ranks of bundlerun script
            importlib.import_module("torchvision")
        for name in more:
            try:
                importlib.import_module(name)
            except ImportError as exc:
                print(f"error: --preload {name}: {exc}", file=sys.stderr)  # noqa: T201
                raise SystemExit(2) from exc
    finally:
        gc.freeze()  # forks share these pages as long as no collection writes into them
        gc.enable()
        os.environ.pop(THREADS_VARIABLE)
        if before is not None:
            os.environ[THREADS_VARIABLE] = before

    def program(file: str, arguments: Sequence[str]) -> int:
        return script.main(("", file, *arguments))

    return program
