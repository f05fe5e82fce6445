"""The arguments of `bundlerun init`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.preflight import SYNTHETIC


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun init`."""
    parser.description = (
        "Look at this machine and at DATA, and write a file of options for them, each with the "
        "reason for its value; bundlerun run --config FILE takes it as it is. Starts nothing."
    )
    parser.add_argument(
        "data",
        nargs="?",
        default=SYNTHETIC,
        metavar="DATA",
        help="what you want to train with (default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", default="run.toml", metavar="FILE", help="file to write (%(default)s)"
    )
    parser.add_argument("--model", default="", help="as for bundlerun run (default: by the data)")
    parser.add_argument("--recipe", default="", help="as for bundlerun run (default: by the data)")
    parser.add_argument("--force", action="store_true", help="replace FILE where there is one")
