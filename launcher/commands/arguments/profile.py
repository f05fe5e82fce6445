"""The arguments of `bundlerun profile`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run import add_config_arguments

TOP = 5
WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun profile`."""
    parser.description = (
        "Measure what each piece of a model costs, between any two neighbouring places where it "
        "can be cut: time, memory, and bytes that would cross, at the run's micro-batch size and "
        "precision, on one device of this machine. It takes as long as a few steps of training, "
        "and is kept in --run-dir for plans. Takes the options of bundlerun run. With --links it "
        "measures what is between the nodes instead."
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print all of it as one JSON document")
    add(
        "--sizes",
        default="",
        metavar="N[,N...]",
        help="samples of micro-batches (default: --microbatch-size; without one, the size that a "
        "run would take and a quarter of it)",
    )
    add("--top", type=int, default=TOP, metavar="N", help="slowest pieces shown (%(default)s)")
    add(
        "--estimate",
        action="store_true",
        help="count operations and bytes, for a device that is not here; needs --tflops and "
        "--memory-gb-s, no memory, and no time of any device",
    )
    add("--tflops", type=float, default=0.0, metavar="X", help="of the device to estimate for")
    add("--memory-gb-s", type=float, default=0.0, metavar="X", help="rate of its memory")
    add(
        "--links",
        action="store_true",
        help="measure rate and latency between nodes and inside this one, and write a cluster file",
    )
    add(
        "--peers",
        default="",
        metavar="HOST[:PORT],...",
        help="with --links: all nodes, the same on each; start the command on all of them",
    )
    add(
        "--wait-s",
        type=float,
        default=WAIT_S,
        metavar="S",
        help="with --peers: how long the other nodes may take to come (default: %(default)g)",
    )
    add(
        "-o",
        "--output",
        default="",
        metavar="FILE",
        help="with --links: cluster file to write (default: print it)",
    )
    add_config_arguments(parser)
