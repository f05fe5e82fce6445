"""The arguments of `bundlerun doctor`."""

from __future__ import annotations

import argparse
from typing import get_args

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.run_folder.latest import RUNS

WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun doctor`."""
    parser.description = (
        "Examine this machine: versions, devices, memory, network, run folder and data; with "
        "--peers, all nodes and every link between them. Exit code 3 where a run would fail."
    )
    add = parser.add_argument
    add("data", nargs="?", default="", metavar="DATA", help="what would be trained on")
    add("--quick", action="store_true", help="only what takes a moment: starts no other program")
    add("--json", action="store_true", help="print it as one JSON document")
    add(
        "--peers",
        default="",
        metavar="HOST[:PORT],...",
        help="all nodes, the same on each: start the same command on all of them",
    )
    add("--local-addr", default="", help="which address of --peers is this node's")
    add("--run-dir", default="", help=f"run folder to try (default: {RUNS})")
    add("--devices", default="auto", choices=get_args(DeviceChoice), help="what a run would use")
    add(
        "--wait-s",
        type=float,
        default=WAIT_S,
        metavar="S",
        help="how long the other nodes may take to come, seconds (default: %(default)g)",
    )
