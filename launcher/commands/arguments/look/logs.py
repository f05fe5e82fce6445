"""The arguments of `bundlerun logs`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_run_argument

LINES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun logs`."""
    parser.description = (
        "Show what the ranks of a run have printed: the end of each one's last attempt, or more."
    )
    add_run_argument(parser)
    parser.add_argument("--node", default="", metavar="NAME", help="of this node only")
    parser.add_argument(
        "--rank", type=int, metavar="N", help="of this rank only; with --node: its local rank too"
    )
    parser.add_argument(
        "--attempt", default="last", metavar="N|last|all", help="which attempt (default: last)"
    )
    parser.add_argument(
        "-n",
        "--lines",
        type=int,
        default=LINES,
        metavar="N",
        help="last lines of each file, 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on showing new lines until the run ends"
    )
