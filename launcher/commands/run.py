"""`bundlerun run`: counts this node's devices, plans, and starts its ranks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from launcher.config import TrainConfig, add_train_arguments, toml_of, train_config
from launcher.console import open_console, tell
from launcher.errors import EXIT_DONE
from launcher.hardware import read_hardware
from launcher.launch_config import LaunchConfig
from launcher.network import Meeting, resolve_meeting
from launcher.node_name import claimed_name
from launcher.options import Resolved, add_options, resolve, said
from launcher.picture import plan_text
from launcher.plan import LaunchPlan, plan_here
from launcher.preflight import check_data, check_torch, check_writable
from launcher.slurm_env import slurm_defaults
from launcher.usage import check_variables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun run`."""
    parser.description = "Start this node's part of a training run; with --nnodes, on every node."
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the plan, start nothing")
    parser.add_argument("--json", action="store_true", help="with --dry-run: as JSON")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that a plan is made of."""
    add_train_arguments(parser)
    add_options(parser, LaunchConfig)


def read_configs(
    args: argparse.Namespace, environ: Mapping[str, str], *, default_data: str = ""
) -> tuple[Resolved[TrainConfig], Resolved[LaunchConfig]]:
    """The training and the launch options.

    Args:
        default_data: DATA where nobody gives one.

    Raises:
        ConfigError: a value is wrong.
    """
    check_variables(environ, (TrainConfig, LaunchConfig))
    toml, name = toml_of(args, TrainConfig, LaunchConfig)
    train = train_config(
        args, environ=environ, toml=toml, toml_name=name, default_data=default_data
    )
    site = slurm_defaults(environ, partial(said, given=vars(args), environ=environ, toml=toml))
    launch = resolve(
        LaunchConfig, vars(args), environ=environ, toml=toml, toml_name=name, site=site
    )
    return train, launch


def make_plan(
    train: Resolved[TrainConfig],
    launch: Resolved[LaunchConfig],
    environ: Mapping[str, str],
    meeting: Meeting,
    node_name: str,
) -> LaunchPlan:
    """The plan for this machine.

    Raises:
        BundleError: it cannot run what is asked.
    """
    return plan_here(
        train,
        launch,
        hardware=read_hardware(environ),
        meeting=meeting,
        node_name=node_name,
        environ=environ,
    )


def run(args: argparse.Namespace) -> int:
    """Starts the ranks and returns when they have ended; or shows the plan."""
    train, launch = read_configs(args, os.environ)
    meeting = resolve_meeting(launch.value)
    job = f"{launch.value.rdzv_id} {Path(train.value.run_dir).absolute()}"
    with claimed_name(job, launch.value.node_name) as name:
        plan = make_plan(train, launch, os.environ, meeting, name)
        if args.dry_run:
            print(plan.to_json() if args.json else plan_text(plan))
            return EXIT_DONE
        check_torch()
        check_data(train.value.data, train.value.recipe)
        check_writable(Path(train.value.run_dir), "--run-dir")
        check_writable(Path(plan.here.log_dir), "--log-dir")
        from launcher import elastic

        return elastic.launch(plan, say=say)


def say(text: str) -> None:
    """Tells the user, on stderr."""
    open_console()
    tell(text)
