"""The arguments of `bundlerun drain`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_run_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun drain`."""
    parser.description = (
        "Ask a run to stop: all ranks finish the same step and write a checkpoint, and the "
        "command of each node ends with exit code 75. The same command, with --run-dir RUN_DIR, "
        "resumes there."
    )
    add_run_argument(parser)
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait up to this long until it has stopped (default: return at once)",
    )
