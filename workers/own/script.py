"""Runs a program of the user as a rank of `bundlerun script`, in a process that has torch."""

from __future__ import annotations

import logging
import os
import random
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # DistributedDataParallel imports it, which takes as long as torch itself
import torch.distributed

import bundlerun.workers.own.protect  # noqa: F401 (loaded once, before ranks are forked)
from bundlerun.launcher.console import ConsoleHandler
from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED, BundleError
from bundlerun.launcher.layout.hardware import THREADS_VARIABLE
from bundlerun.workers.own.process.joined import FOLDER_VARIABLE

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the program to its end and returns its exit code.

    Args:
        argv: the run folder, the program, its arguments.
    """
    run_dir, script, *arguments = argv
    logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()], force=True)
    os.environ[FOLDER_VARIABLE] = run_dir
    _begin_anew(script, arguments)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exc:
        return _code_of(exc)
    except BundleError as exc:
        log.error("error: %s", exc)
        return exc.exit_code
    return EXIT_DONE


def _begin_anew(script: str, arguments: Sequence[str]) -> None:
    """Makes this process, a fork, what a new one would be."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).absolute().parent))
    torch.set_num_threads(int(os.environ.get(THREADS_VARIABLE, "1")))
    # All forks have the generators of one process; new ones have each their own.
    random.seed()
    np.random.seed()


def _code_of(end: SystemExit) -> int:
    if end.code is None:
        return EXIT_DONE
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)  # noqa: T201 (as Python does)
    return EXIT_FAILED
