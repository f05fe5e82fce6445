"""The arguments of `bundlerun track`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_run_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun track`."""
    parser.description = (
        "Tell trackers what they do not have of a run: one that ended before they had all of it, "
        "or that was started without them."
    )
    add_run_argument(parser)
    parser.add_argument(
        "--tracker",
        action="append",
        required=True,
        metavar="NAME[,NAME...]",
        help="tensorboard, wandb, mlflow, trackio, or that of another package",
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=600.0,
        metavar="N",
        help="longest time for each of them, seconds (default: %(default)g)",
    )
