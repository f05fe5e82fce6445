"""`bundlerun script`: starts this node's ranks of a user's own program, as torchrun would.

Ranks are forked from a process that has torch already, so that a start of them takes a fraction of
a second; nodes meet as those of `bundlerun run` do. In the program, `bundlerun.protect` keeps its
state.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bundlerun.launcher.commands.run import planned, say, site_options, with_folder
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.declared import Resolved, resolve
from bundlerun.launcher.options.usage import check_variables
from bundlerun.launcher.plan import SCRIPT_MODULE, LaunchPlan
from bundlerun.launcher.preflight import check_torch


def read_options(
    args: argparse.Namespace, environ: Mapping[str, str]
) -> tuple[Resolved[TrainConfig], Resolved[LaunchConfig]]:
    """The options that ranks have, as those of a run of one stage; and the launch options.

    Raises:
        ConfigError: a value is wrong.
    """
    check_variables(environ, (TrainConfig, LaunchConfig))
    given = vars(args)
    launch = resolve(
        LaunchConfig,
        given,
        environ=environ,
        toml={},
        toml_name="",
        site=site_options(environ, given, {}),
    )
    if launch.value.standby:
        raise ConfigError(
            "--standby warms up what bundlerun run does first, and a program of your own does "
            "what it likes; leave it out: ranks are forks of a process that has torch"
        )
    run_dir = args.run_dir or environ.get("BUNDLERUN_RUN_DIR", "")
    # Pinned to cores only where the program does so: its loading processes are its own business.
    value = TrainConfig(shape=Shape((1,)), run_dir=run_dir, threads=args.threads, affinity=False)
    return with_folder(Resolved(value, {"shape": "script"}), launch, environ), launch


def run(args: argparse.Namespace) -> int:
    """Starts the ranks and returns when they have ended."""
    if not Path(args.script).is_file():
        raise ConfigError(
            f"no such file: {args.script!r}; give the program, a file that ends in .py"
        )
    train, launch = read_options(args, os.environ)
    with planned(train, launch, os.environ) as start:
        plan = replace(start.plan, module=SCRIPT_MODULE, script=(args.script, *args.arguments))
        if args.dry_run:
            print(plan_text(plan))
            return EXIT_DONE
        check_torch()
        claim = start.claim(plan.terms)
        from bundlerun.launcher.agent import elastic

        return elastic.launch(plan, say=say, claim=claim)


def plan_text(plan: LaunchPlan) -> str:
    """What would run, for people."""
    node = plan.here
    return "\n".join(
        [
            f"node         {node.name}: {node.num_procs} ranks on {node.devices.kind}",
            f"program      {' '.join(plan.script)}",
            f"run folder   {plan.train.value.run_dir}",
        ]
    )
