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
from bundlerun.launcher.ranks.board import Board
from bundlerun.launcher.ranks.fault import is_follower
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.own.process.joined import FOLDER_VARIABLE
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.said_once import said_once

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the program to its end and returns its exit code.

    Args:
        argv: the run folder, empty where the program knows; the program, its arguments.
    """
    run_dir, script, *arguments = argv
    logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()], force=True)
    board = Board.open(os.environ) if run_dir else None
    if run_dir:
        os.environ[FOLDER_VARIABLE] = run_dir
    if board is not None and not board.run_dir:
        board.run_dir = str(Path(run_dir).absolute())
    _begin_anew(script, arguments)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exc:
        return _code_of(exc)
    except BundleError as exc:
        text = f"error: {exc}"
        with said_once(text, os.environ) as is_first:
            if is_first:
                log.error("%s", text)
        _tell(exc, text, RunPaths(Path(run_dir)), board)
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


def _tell(error: BundleError, text: str, paths: RunPaths, board: Board | None) -> None:
    """Tells the history and the agent why this rank ends, where nothing inside of it has."""
    env = RankEnv.from_mapping(os.environ)
    row = board.row(env.local_rank) if board is not None else None
    if row is None or row.exit_code is not None:
        return
    who = {"local_rank": env.local_rank, "attempt": env.attempt}
    details = {"text": text, "exit_code": error.exit_code, "is_follower": is_follower(error)}
    Events(paths.node_events(env.node_name), env.node_name, who).note("failed", details)
    row.end(error.verdict)


def _code_of(end: SystemExit) -> int:
    if end.code is None:
        return EXIT_DONE
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)  # noqa: T201 (as Python does)
    return EXIT_FAILED
