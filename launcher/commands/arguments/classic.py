"""The arguments of `bundlerun classic`."""

from __future__ import annotations

import argparse
from typing import get_args

from bundlerun.launcher.choices import DeviceChoice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the original, with their names and defaults."""
    parser.description = (
        "Run with the options of the original Bundle_HybridParallelism; the bundlerun command "
        "that they stand for is printed first."
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="path to the data set")
    add("--batch-size", type=int, default=32, help="samples of one bundle's step (default: 32)")
    add("--rank", "--node-rank", type=int, default=0, help="rank of this node (default: 0)")
    add(
        "--num-hp", "--num-bundle", type=int, default=1, dest="num_bundles",
        help="bundles of this node; with --DP-ONLY its devices (default: 1)",
    )  # fmt: skip
    add("--bundle-shape", default="1,1", help="devices per stage of a bundle (default: 1,1)")
    add("--IP", default="127.0.0.1", help="address of the node of rank 0 (default: 127.0.0.1)")
    add("--portNum", type=int, default=8888, help="its port (default: 8888)")
    add("--world-size", type=int, default=1, help="number of nodes (default: 1)")
    add("--model", "--modela", default="resnet101_trial1", help="NAME, or NAME_trialN")
    add("--itr", type=int, default=0, help="steps to run (0: whole epochs)")
    add("--lr", type=float, default=0.01, help="learning rate (default: 0.01)")
    add("--momentum", type=float, default=0.9, help="momentum (default: 0.9)")
    add("--weight-decay", "--wd", type=float, default=1e-4, help="weight decay (default: 0.0001)")
    add("--DP-ONLY", action="store_true", dest="dp_only", help="data parallel only")
    add(
        "--devices",
        choices=get_args(DeviceChoice),
        default="auto",
        help="not of the original: gpu or cpu",
    )
    add("--run-dir", default="runs/classic", help="not of the original: the run folder")
    add("--dry-run", action="store_true", help="print the command only")
