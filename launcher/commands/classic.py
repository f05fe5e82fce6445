"""`bundlerun classic`: the original Bundle_HybridParallelism's options, as a `bundlerun run`.

The original means: a batch size per bundle, a fixed rank for each node, a fixed number of nodes.

    --batch-size B --num-bundle N --world-size W      --batch-size=B*N*W --bundles=N --nnodes=W
    --rank R --IP ADDRESS --portNum P                 --rdzv-backend=static --node-rank=R
                                                      --rdzv-endpoint=ADDRESS:P
"""

from __future__ import annotations

import argparse
import re
import shlex
from typing import get_args

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.commands import run as run_command
from bundlerun.launcher.commands.arguments.run import add_arguments as add_run_arguments
from bundlerun.launcher.commands.run import say
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.layout.shape import Shape


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


def run_argv(args: argparse.Namespace) -> list[str]:
    """The command line of `bundlerun run` that the original's options stand for.

    Raises:
        ConfigError: a count is below 1 or the rank is none of the nodes.
    """
    for flag, value in (
        ("--batch-size", args.batch_size),
        ("--num-hp", args.num_bundles),
        ("--world-size", args.world_size),
    ):
        if value < 1:
            raise ConfigError(f"{flag} {value} must be 1 or more")
    shape = _shape(args)
    words = [
        f"--model={plain_model(args.model)}",
        f"--shape={shape}",
        f"--batch-size={args.batch_size * args.num_bundles * args.world_size}",
        f"--microbatch-size={microbatch_size(args.batch_size, shape.num_stages)}",
        # The original has a batch size per bundle: equal shares, whatever their speed.
        "--share=equal",
        f"--lr={args.lr}",
        "--lr-schedule=constant",
        f"--momentum={args.momentum}",
        f"--weight-decay={args.weight_decay}",
        f"--run-dir={args.run_dir}",
        f"--bundles={args.num_bundles}",
        f"--devices={args.devices}",
    ]
    if args.itr:
        words.append(f"--max-steps={args.itr}")
    if args.devices == "cpu":
        words.append(f"--slots={args.num_bundles * shape.size}")
    if args.world_size > 1:
        words += _meeting_words(args)
    return [*words, args.data]


def _meeting_words(args: argparse.Namespace) -> list[str]:
    words = [
        f"--nnodes={args.world_size}",
        "--rdzv-backend=static",
        f"--node-rank={args.rank}",
        f"--rdzv-endpoint={args.IP}:{args.portNum}",
    ]
    # The original's default: all nodes on one machine.
    return [*words, f"--local-addr={args.IP}"] if args.IP == "127.0.0.1" else words


def _shape(args: argparse.Namespace) -> Shape:
    if args.dp_only:
        return Shape((1,))
    try:
        return Shape.parse(args.bundle_shape)
    except ValueError as exc:
        raise ConfigError(
            f"--bundle-shape {args.bundle_shape!r} is not whole numbers separated by commas"
        ) from exc


def plain_model(name: str) -> str:
    """The torchvision name of one of the original's, `resnet101_trial4`.

    A trial was one of the author's own places to cut; the family's named default stands for it.
    """
    return re.sub(r"_trial\d+$", "", name)


def microbatch_size(batch_size: int, num_stages: int) -> int:
    """Samples of a micro-batch: all of the bundle's batch in one stage, up to a quarter in more.

    With four micro-batches or more the stages work at the same time.
    """
    most = batch_size if num_stages == 1 else max(1, batch_size // 4)
    return max(size for size in range(1, most + 1) if batch_size % size == 0)


def run(args: argparse.Namespace) -> int:
    """Prints the command, then runs it."""
    words = run_argv(args)
    command = shlex.join(["bundlerun", "run", *words])
    if args.dry_run:
        print(command)
        return EXIT_DONE
    say(command)
    parser = argparse.ArgumentParser(prog="bundlerun run", allow_abbrev=False)
    add_run_arguments(parser)
    return run_command.run(parser.parse_args(words))
