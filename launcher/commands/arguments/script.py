"""The arguments of `bundlerun script`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun script`."""
    parser.description = (
        "Start this node's ranks of a program of your own, with torchrun's variables; with "
        "--nnodes, on every node. What comes after FILE.py goes to the program."
    )
    parser.add_argument("script", metavar="FILE.py", help="the program, a Python file")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the program"
    )
    parser.add_argument(
        "--run-dir",
        default="",
        help="run folder, for logs and what protect() keeps (default: a new one in runs/)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="compute threads per rank (0: OMP_NUM_THREADS if set, else 1, or all cores if the "
        "node has one rank)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run, start nothing")
    add_options(parser, LaunchConfig)
