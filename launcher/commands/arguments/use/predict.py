"""The arguments of `bundlerun predict`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.commands.arguments.run_folder import add_checkpoint_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun predict`."""
    parser.description = (
        "Say what a trained model takes images for: its likeliest classes, by name. Images are "
        "prepared as in the run's validation; it runs on one device. Exit code 2 where an image "
        "cannot be read."
    )
    parser.add_argument("run_dir", metavar="RUN", help="run folder, such as runs/latest")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, or folders of them"
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes of each image (default: 5)"
    )
    parser.add_argument(
        "--devices", default="auto", choices=("auto", "gpu", "cpu"), metavar="{auto,gpu,cpu}",
        help="what to compute on (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", default="", metavar="NAME", help="another one than in training"
    )
    parser.add_argument("--json", action="store_true", help="print it as one JSON document")
