"""The arguments of `bundlerun goodput`."""

from __future__ import annotations

import argparse

_TIME = "TIME"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun goodput`."""
    parser.description = (
        "Show how much of the time of a cluster is left for training, where nodes fail, by "
        "simulation: of this launcher and of torchrun with checkpoints. Starts nothing. A TIME is "
        "a number with its unit: 500ms, 1.2s, 30min, 4h, 2d, 5y; what happens seldom may be never."
    )
    _add_machines(parser.add_argument_group("machines"))
    _add_failures(parser.add_argument_group("what fails"))
    _add_costs(parser.add_argument_group("what it costs"))
    _add_output(parser.add_argument_group("simulation and output"))


def _add_machines(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--nodes", default="10..100000", metavar="N[,N..N]",
        help="nodes that the run wants; two dots stand for the powers of ten between "
        "(default: %(default)s)",
    )  # fmt: skip
    add(
        "--spares", default="0,1%", metavar="N|P%[,...]",
        help="more nodes, which wait for a place; each of several in rows of its own "
        "(default: 0,1%%)",
    )  # fmt: skip
    add("--devices-per-node", type=int, default=8, metavar="N", help="(default: %(default)s)")
    add(
        "--shape", default="1",
        help="devices per stage of a bundle; those that make no whole bundle after a failure are "
        "idle (default: %(default)s)",
    )  # fmt: skip
    add("--min-nodes", type=int, default=1, metavar="N", help="with fewer nothing goes on")


def _add_failures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--mtbf", default="264d", metavar=_TIME,
        help="mean time between failures of one node (default: %(default)s, as 2,048 nodes of 8 "
        "H100 had in Meta's report on Llama 3)",
    )  # fmt: skip
    add("--repair", default="1d", metavar=_TIME, help="until it is back (default: %(default)s)")
    add(
        "--crash-every", default="never", metavar=_TIME,
        help="mean time between failures of the ranks of one node that leave the node as it is "
        "(default: %(default)s)",
    )  # fmt: skip
    add(
        "--drain-every", default="never", metavar=_TIME,
        help="mean time between two planned removals of one node (default: %(default)s)",
    )  # fmt: skip
    add("--drain-for", default="1h", metavar=_TIME, help="until it is back (default: %(default)s)")
    add("--rack-nodes", type=int, default=0, metavar="N", help="nodes that share a rack")
    add(
        "--rack-mtbf", default="never", metavar=_TIME,
        help="mean time between failures of one rack, all nodes at once (default: %(default)s)",
    )  # fmt: skip
    add(
        "--rack-repair", default="4h", metavar=_TIME, help="until it is back (default: %(default)s)"
    )


def _add_costs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--recovery", metavar=_TIME,
        help="from a failure to the next step (default: what was measured)",
    )  # fmt: skip
    add("--recovery-per-node", metavar=_TIME, help="more of it for each node (the same)")
    add("--join", metavar=_TIME, help="without a step as a node comes (the same)")
    add("--restart", metavar=_TIME, help="from a checkpoint, where all copies are lost (the same)")
    add("--step", default="1s", metavar=_TIME, help="of a step (default: %(default)s)")
    add(
        "--snapshot-steps", type=int, default=1, metavar="N",
        help="steps between two snapshots in memory (default: %(default)s)",
    )  # fmt: skip
    add("--snapshot-cost", metavar="P%", help="of the time (default: what was measured)")
    add(
        "--checkpoint-cost", default="30s", metavar=_TIME,
        help="that all wait for a checkpoint (default: %(default)s, which is assumed)",
    )  # fmt: skip
    add(
        "--checkpoint-every", default="4h", metavar=_TIME,
        help="of training between two of them (default: %(default)s)",
    )  # fmt: skip
    add("--torchrun-recovery", metavar=_TIME, help="as --recovery, of torchrun (what was measured)")
    add("--torchrun-join", metavar=_TIME, help="as --join, of torchrun (what was measured)")
    add(
        "--torchrun-checkpoint-every", default="best", metavar="TIME|best",
        help="as --checkpoint-every, of torchrun (default: %(default)s: what loses the least)",
    )  # fmt: skip
    add("--no-torchrun", action="store_true", help="leave torchrun out")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--for", dest="duration", default="30d", metavar=_TIME, help="a run (default: %(default)s)")
    add("--runs", type=int, default=0, metavar="N", help="of each setting (0: what is enough)")
    add("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    add("--json", action="store_true", help="print all of it as one JSON document")
    add("--png", metavar="FILE", help="draw it, too; needs the extra report")
    add("--svg", metavar="FILE", help="the same as SVG")
