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

from bundlerun.launcher.commands import run as run_command
from bundlerun.launcher.commands.arguments.run import add_arguments as add_run_arguments
from bundlerun.launcher.commands.run import say
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.layout.shape import Shape


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
