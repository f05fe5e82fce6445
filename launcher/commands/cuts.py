"""`bundlerun cuts`: where a model can be cut, and what each cut means."""

from __future__ import annotations

import argparse
import importlib
import os

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE
from bundlerun.launcher.options.usage import check_variables
from bundlerun.launcher.plan import WORKER_MODULE
from bundlerun.launcher.train_argv import add_train_arguments, toml_of, train_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun cuts`."""
    parser.description = (
        "Show every name that --cut takes for a model, with the parameters and operations before "
        "that place and the bytes that would cross it, for one sample. It reads two samples of "
        "DATA (default: synthetic, images of --image-size)."
    )
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON document")
    add_train_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the names."""
    check_variables(os.environ, (TrainConfig,))
    toml, name = toml_of(args, TrainConfig)
    found = train_config(
        args, environ=os.environ, toml=toml, toml_name=name, default_data="synthetic"
    )
    print(importlib.import_module(WORKER_MODULE).cuts(found.value, as_json=args.json))
    return EXIT_DONE
