"""`bundlerun plan`: what would run where, for this machine or for others."""

from __future__ import annotations

import argparse
import os
import re
import socket
from dataclasses import replace

from launcher.commands.run import add_config_arguments, make_plan, read_configs
from launcher.errors import EXIT_DONE, ConfigError
from launcher.network import as_typed
from launcher.picture import plan_text
from launcher.plan import plan_elsewhere

CONFIGURED = "the configured schedule"
"""What a bare --schedule stands for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun plan`."""
    parser.description = "Show what would run where; starts nothing, needs no torch."
    parser.add_argument(
        "--nodes",
        metavar="NxD[,NxD...]",
        help="machines that are not there: 4x8,2x4 is 4 nodes of 8 devices and 2 of 4 "
        "(default: --nnodes machines like this one)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document, not shortened")
    add_config_arguments(parser)
    _let_schedule_draw(parser)


def _let_schedule_draw(parser: argparse.ArgumentParser) -> None:
    """Makes the name after --schedule optional; with or without it the order is drawn."""
    for action in parser._actions:
        if action.dest == "schedule":
            action.nargs, action.const, action.metavar = "?", CONFIGURED, "NAME"
            action.help = f"draw the order of passes; with NAME, plan for this one: {action.help}"


def parse_nodes(text: str) -> tuple[int, ...]:
    """Reads `4x8,2x4` as devices per node: (8, 8, 8, 8, 4, 4).

    Raises:
        ConfigError: it is written otherwise.
    """
    nodes: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)x)?(\d+)\s*", part)
        if not match or int(match[1] or 1) < 1 or int(match[2]) < 1:
            raise ConfigError(f"--nodes {text!r} is not NODESxDEVICES[,...], such as 4x8,2x4")
        nodes += [int(match[2])] * int(match[1] or 1)
    return tuple(nodes)


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    shows_schedule = hasattr(args, "schedule")
    if shows_schedule and args.schedule is CONFIGURED:
        del args.schedule
    train, launch = read_configs(args, os.environ, default_data="DATA")
    if not train.value.run_dir:
        train = replace(train, value=replace(train.value, run_dir="RUN_DIR"))
    if args.nodes is not None:
        plan = plan_elsewhere(parse_nodes(args.nodes), train, launch)
    else:
        name = launch.value.node_name or socket.gethostname()
        plan = make_plan(train, launch, os.environ, as_typed(launch.value), name)
    print(plan.to_json() if args.json else plan_text(plan, shows_schedule=shows_schedule))
    return EXIT_DONE
