"""`bundlerun cuts`: where a model can be cut, and what each cut means."""

from __future__ import annotations

import argparse
import importlib
import os

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.usage import check_variables
from bundlerun.launcher.plan import WORKER_MODULE
from bundlerun.launcher.train_argv import toml_of, train_config


def run(args: argparse.Namespace) -> int:
    """Prints the names."""
    # Those of a launch may be set for all commands of a shell.
    check_variables(os.environ, (TrainConfig, LaunchConfig))
    toml, name = toml_of(args, TrainConfig, LaunchConfig)
    found = train_config(
        args, environ=os.environ, toml=toml, toml_name=name, default_data="synthetic"
    )
    print(importlib.import_module(WORKER_MODULE).cuts(found.value, as_json=args.json))
    return EXIT_DONE
