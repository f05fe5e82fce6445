"""The arguments of `bundlerun cuts`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.train_argv import add_train_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun cuts`."""
    parser.description = (
        "Show every name that --cut takes for a model, with the parameters and operations before "
        "that place and the bytes that would cross it, for one sample. It reads two samples of "
        "DATA (default: synthetic, images of --image-size)."
    )
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON document")
    add_train_arguments(parser)
