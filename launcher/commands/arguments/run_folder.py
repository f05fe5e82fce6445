"""Which run is meant, by its folder or by its job; and which of its checkpoints."""

from __future__ import annotations

import argparse

from bundlerun.launcher.run_folder.latest import LATEST

BEST, NEWEST = "best", "newest"
BATCH_SYSTEMS = ("Slurm",)
"""Whose jobs have runs; those of `launcher.meeting.site`."""


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that `run_paths` reads."""
    parser.add_argument(
        "run_dir",
        nargs="?",
        default=str(LATEST),
        metavar="RUN_DIR|JOB",
        help=f"run folder, or {' or '.join(BATCH_SYSTEMS)} job (default: %(default)s)",
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint`, which `chosen` reads."""
    parser.add_argument(
        "--checkpoint",
        default=NEWEST,
        metavar="best|newest|STEP",
        help="the checkpoint with the best validation, the newest that is undamaged, or that of a "
        "step (default: %(default)s)",
    )
