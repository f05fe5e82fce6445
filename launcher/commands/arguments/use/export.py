"""The arguments of `bundlerun export`."""

from __future__ import annotations

import argparse

from bundlerun.launcher.run_folder.latest import LATEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun export`."""
    parser.description = (
        "Write the model of a run as one plain state_dict, which the unsplit model loads with "
        "strict=True, and FILE.json with its classes and the preprocessing of its input; or as "
        "ONNX, or as the folder that timm or transformers load."
    )
    parser.add_argument(
        "run_folder",
        nargs="?",
        default=str(LATEST),
        metavar="RUN",
        help="run folder, as given to --run-dir (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE|FOLDER",
        help="file to write; its suffix says how: .safetensors, .pt, .pth or .onnx",
    )
    parser.add_argument(
        "--format",
        choices=("file", "library"),
        default="file",
        metavar="{file,library}",
        help="library: a folder that the model's own library loads, timm or transformers "
        "(default: %(default)s)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)"
    )
    which.add_argument(
        "--best",
        action="store_true",
        help="the checkpoint with the best validation, by what the recipe says is best",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="the average of the weights, of a run with --model-ema, in place of them",
    )
