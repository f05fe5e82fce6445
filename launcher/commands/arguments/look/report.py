"""The arguments of `bundlerun report`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.run_folder.latest import LATEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun report`."""
    parser.description = (
        "Write one HTML file that shows a run, or several side by side: loss and metrics, speed, "
        "where the time goes, rounds, failures and recoveries, steps action by action, memory, "
        "configuration. It holds all it needs and can be mailed; a run that goes on has it too."
    )
    parser.add_argument(
        "run_dir",
        nargs="*",
        default=[str(LATEST)],
        metavar="RUN_DIR|JOB",
        help=f"run folders, or jobs that have them (default: {LATEST})",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to (default: RUN_DIR/report.html; of several runs report.html here)",
    )
    parser.add_argument("--png", metavar="FOLDER", help="write each figure there as a PNG, too")
