"""The arguments of `bundlerun plan`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run import add_config_arguments

CONFIGURED = "the configured schedule"
"""What a bare --schedule stands for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun plan`."""
    parser.description = (
        "Show what would run where; starts nothing, and without --costs and --memory needs no "
        "torch."
    )
    parser.add_argument(
        "--nodes",
        metavar="NxD[,NxD...]",
        help="plan for other machines: 4x8,2x4 is 4 nodes of 8 devices and 2 of 4 "
        "(default: --nnodes machines like this one)",
    )
    parser.add_argument(
        "--costs",
        action="store_true",
        help="also show operations and bytes of each stage; needs torch, and reads two samples",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also show the memory that each rank and node needs, and what does not fit; takes the "
        "profile that the run folder has, else makes one, which needs torch and takes seconds",
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="also draw it: nodes, bundles, what is sent in a step, and a step in time, by the "
        "profile that the run folder has, above the last one that was measured; .svg, .png or "
        ".pdf; needs the extra bundlerun[report]",
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="also write that step for Perfetto, .json or .json.gz",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON document")
    add_config_arguments(parser)
    _let_schedule_draw(parser)


def _let_schedule_draw(parser: argparse.ArgumentParser) -> None:
    """Makes the name after --schedule optional; with or without it the order is drawn."""
    for action in parser._actions:
        if action.dest == "schedule":
            action.nargs, action.const, action.metavar = "?", CONFIGURED, "NAME"
            action.help = f"draw the order of passes; with NAME, plan for this one: {action.help}"
