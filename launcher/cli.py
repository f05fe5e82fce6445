"""The command line `bundlerun`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from bundlerun.launcher.errors import EXIT_CONFIG, EXIT_NODE, BundleError, nearest
from bundlerun.launcher.options.parser import Parser, kebab, parsed

_OURS = "bundlerun.launcher.commands"


class Command(NamedTuple):
    """A subcommand.

    module: has `run(args) -> int`; imported when it is to run.
    text: one line of what it does.
    arguments: has `add_arguments(parser)`; all that `--help` loads.
    """

    module: str
    text: str
    arguments: str


COMMANDS = {
    "init": Command(
        f"{_OURS}.init",
        "write a commented file of options for this machine and your data",
        f"{_OURS}.arguments.init",
    ),
    "run": Command(
        f"{_OURS}.run",
        "start this node's part of a training run",
        f"{_OURS}.arguments.run",
    ),
    "script": Command(
        f"{_OURS}.script",
        "start this node's ranks of a program of your own, as torchrun would",
        f"{_OURS}.arguments.script",
    ),
    "plan": Command(
        f"{_OURS}.plan",
        "show what would run where, for this machine or for others; starts nothing",
        f"{_OURS}.arguments.plan",
    ),
    "goodput": Command(
        f"{_OURS}.goodput",
        "show how much time is left for training where nodes fail, by simulation",
        f"{_OURS}.arguments.goodput",
    ),
    "cuts": Command(
        f"{_OURS}.cuts",
        "show where a model can be cut, and what each cut means; starts nothing",
        f"{_OURS}.arguments.cuts",
    ),
    "profile": Command(
        f"{_OURS}.use.profile",
        "measure what each piece of a model costs, or the links between nodes",
        f"{_OURS}.arguments.profile",
    ),
    "classic": Command(
        f"{_OURS}.classic",
        "run with the options of the original Bundle_HybridParallelism",
        f"{_OURS}.arguments.classic",
    ),
    "status": Command(
        f"{_OURS}.look.status",
        "show how a run fares: step, nodes, failures, checkpoints",
        f"{_OURS}.arguments.look.status",
    ),
    "why": Command(
        f"{_OURS}.look.why",
        "say why a run is slow, or stands, and who holds it up",
        f"{_OURS}.arguments.look.why",
    ),
    "doctor": Command(
        f"{_OURS}.look.doctor",
        "examine machines, network and folders before a run; starts nothing",
        f"{_OURS}.arguments.look.doctor",
    ),
    "logs": Command(
        f"{_OURS}.look.logs",
        "show what the ranks of a run have printed",
        f"{_OURS}.arguments.look.logs",
    ),
    "track": Command(
        f"{_OURS}.look.track",
        "tell trackers (TensorBoard, W&B, ...) what they lack of a run",
        f"{_OURS}.arguments.look.track",
    ),
    "report": Command(
        f"{_OURS}.look.report",
        "write one HTML file that shows runs: curves, times, what happened",
        f"{_OURS}.arguments.look.report",
    ),
    "drain": Command(
        f"{_OURS}.drain",
        "ask a run to finish its step, write a checkpoint and stop",
        f"{_OURS}.arguments.drain",
    ),
    "submit": Command(
        "bundlerun.slurm.submit",
        "send a run to Slurm, after checking what can be checked before the queue",
        "bundlerun.slurm.arguments",
    ),
    "evaluate": Command(
        f"{_OURS}.use.evaluate",
        "loss and metrics of a checkpoint, on the run's data or other data",
        f"{_OURS}.arguments.use.evaluate",
    ),
    "predict": Command(
        f"{_OURS}.use.predict",
        "name the classes of images by a trained model",
        f"{_OURS}.arguments.use.predict",
    ),
    "export": Command(
        f"{_OURS}.use.export",
        "write a trained model for torchvision, timm, transformers or ONNX",
        f"{_OURS}.arguments.use.export",
    ),
    "completion": Command(
        f"{_OURS}.completion",
        "make bash, zsh or fish complete the command line",
        f"{_OURS}.arguments.completion",
    ),
}
"""Subcommands in the order of `--help`."""
_WITH_TRAINING = ("run", "plan", "cuts", "profile")
"""Those that take the options of training, some of which may stand without their value."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A shell asks how a line may go on.
    if "_ARGCOMPLETE" in os.environ:
        from bundlerun.launcher.commands.completion import complete

        complete(command_parser, os.environ.get("COMP_LINE", ""))
    # Only these start ranks, whose signals and orphans process 1 of a container must handle.
    if words[:1] in (["run"], ["script"], ["classic"]):
        from bundlerun.launcher.agent.init import stand_before

        ended = stand_before()
        if ended is not None:
            return ended
    command = words[0] if words else ""
    parser = command_parser(command)
    # Before argparse, whose own message lists all commands and no nearest one.
    if command and command not in COMMANDS and not command.startswith("-"):
        text = f"error: unknown command {command!r}; {nearest(command, COMMANDS)}"
        print(text, file=sys.stderr)
        return EXIT_CONFIG
    if not command or words in (["--help"], ["-h"]):
        parser.print_help()
        return 0
    # Not above: the help of the program needs no option to be read.

    args = parsed(parser, our_words(words))
    module = importlib.import_module(COMMANDS[command].module)
    try:
        return int(module.run(args))
    except BundleError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except PermissionError as exc:
        print(f"error: no permission for {str(exc.filename)!r}; ask its owner", file=sys.stderr)
        return EXIT_NODE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `bundlerun plan | head`
        sys.stderr.close()
        return 0


def our_words(argv: Sequence[str]) -> list[str]:
    """The words that argparse reads; what a script is called with stays as it is typed."""
    if argv[:1] == ["script"]:
        end = next((i for i, word in enumerate(argv) if word.endswith(".py")), len(argv))
        return [*kebab(argv[:end]), *argv[end:]]
    if argv[0] not in _WITH_TRAINING:
        return kebab(argv)
    from bundlerun.launcher.train_argv import train_words

    return train_words(argv)


def command_parser(command: str) -> Parser:
    """The parser of `command` alone; for any other word, of all commands without arguments."""
    parser = Parser(
        prog="bundlerun",
        description="Train a model that is cut into stages, on bundles of devices.",
        epilog="bundlerun COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    # A parser takes time to make, and the modules of other commands more, for what nobody sees.
    for name in [command] if command in COMMANDS else COMMANDS:
        known = COMMANDS[name]
        sub = commands.add_parser(name, help=known.text, description=known.text)
        if name == command:
            importlib.import_module(known.arguments).add_arguments(sub)
            sub.complete()
            sub.set_defaults(parser=sub)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        # Loaded for this only: it takes as long as all the rest of `--help`.
        from importlib import metadata

        try:
            text = f"bundlerun {metadata.version('bundlerun')}"
        except metadata.PackageNotFoundError:
            text = "bundlerun (not installed)"
        print(text)
        parser.exit()
