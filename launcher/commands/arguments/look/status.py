"""The arguments of `bundlerun status`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_run_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun status`."""
    parser.description = (
        "Show how a run fares: step, speed, members, failures, checkpoints, goodput."
    )
    add_run_argument(parser)
    parser.add_argument("--json", action="store_true", help="print it as one JSON document")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="until the run has ended: drawn in place on a terminal, else a line for each change",
    )
    parser.add_argument(
        "--every",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="with --watch: between two looks (default: %(default)s)",
    )
