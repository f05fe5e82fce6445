"""The arguments of `bundlerun evaluate`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_checkpoint_argument
from bundlerun.launcher.run_folder.latest import LATEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun evaluate`."""
    parser.description = (
        "Evaluate a checkpoint of a run as its own validation does: the same preprocessing, "
        "micro-batches and arithmetic. In one process, on one device; with --shape over the "
        "devices of this machine."
    )
    parser.add_argument(
        "run_dir", nargs="?", default=str(LATEST), metavar="RUN",
        help="run folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "data", nargs="?", default="", metavar="DATA",
        help="data laid out as for training, of which the validation part is used; a folder of "
        "class folders will do (default: the data of the run)",
    )  # fmt: skip
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--shape", default="", metavar="W[,W...]",
        help="cut the model, and share the work, as in bundlerun run (default: one process)",
    )  # fmt: skip
    parser.add_argument(
        "--devices", default="auto", choices=("auto", "gpu", "cpu"), metavar="{auto,gpu,cpu}",
        help="what to compute on (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=int, default=0, metavar="N", help="with --shape: CPU slots of this machine"
    )
    parser.add_argument(
        "--precision", default="", metavar="NAME", help="another one than in training"
    )
    parser.add_argument("--json", action="store_true", help="print it as one JSON document")
