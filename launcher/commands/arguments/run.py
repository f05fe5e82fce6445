"""The arguments of `bundlerun run`, most of which a plan and a job are made of, too."""

from __future__ import annotations

import argparse

from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.declared import add_options
from bundlerun.launcher.options.parser import hide
from bundlerun.launcher.train_argv import add_train_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun run`."""
    parser.description = "Start this node's part of a training run; with --nnodes, on every node."
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan, start nothing")
    hide(parser, parser.add_argument("--json", action="store_true", help="with --dry-run: as JSON"))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that a plan is made of."""
    add_train_arguments(parser)
    parser.add_argument(
        "--like",
        metavar="RUN",
        help="take the options of an earlier run, given by its folder; those that are given here "
        "go over them; it begins anew, in a run folder of its own",
    )
    add_options(parser, LaunchConfig)
