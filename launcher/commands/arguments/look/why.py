"""The arguments of `bundlerun why`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_run_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun why`."""
    parser.description = (
        "Say what bounds the steps of a run, which rank or link holds the others up, and, where "
        "it stands, who waits for whom."
    )
    add_run_argument(parser)
    parser.add_argument(
        "--stacks", action="store_true", help="where it stood: the stacks of each rank, too"
    )
    parser.add_argument("--json", action="store_true", help="print it as one JSON document")
