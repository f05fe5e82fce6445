"""The command line `bundlerun`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

from bundlerun.launcher.agent.init import stand_before
from bundlerun.launcher.errors import EXIT_CONFIG, EXIT_NODE, BundleError, nearest
from bundlerun.launcher.options.usage import parsed, shorten
from bundlerun.launcher.train_argv import train_words

_OURS = "bundlerun.launcher.commands"


class Command(NamedTuple):
    """A subcommand.

    module: has `add_arguments(parser)` and `run(args) -> int`; imported when it is asked for.
    text: one line of what it does.
    """

    module: str
    text: str


COMMANDS = {
    "run": Command(f"{_OURS}.run", "start this node's part of a training run"),
    "script": Command(
        f"{_OURS}.script", "start this node's ranks of a program of your own, as torchrun would"
    ),
    "plan": Command(
        f"{_OURS}.plan",
        "show what would run where, for this machine or for others; starts nothing",
    ),
    "cuts": Command(
        f"{_OURS}.cuts", "show where a model can be cut, and what each cut means; starts nothing"
    ),
    "classic": Command(
        f"{_OURS}.classic", "run with the options of the original Bundle_HybridParallelism"
    ),
    "status": Command(
        f"{_OURS}.look.status", "show how a run fares: step, nodes, failures, checkpoints"
    ),
    "doctor": Command(
        f"{_OURS}.look.doctor", "examine machines, network and folders before a run; starts nothing"
    ),
    "drain": Command(f"{_OURS}.drain", "ask a run to finish its step, write a checkpoint and stop"),
    "submit": Command(
        "bundlerun.slurm.submit",
        "send a run to Slurm, after checking what can be checked before the queue",
    ),
    "export": Command(
        f"{_OURS}.use.export", "write a trained model as one file that plain torchvision loads"
    ),
}
"""Subcommands in the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    words = our_words(sys.argv[1:] if argv is None else argv)
    # Only these start ranks, whose signals and orphans process 1 of a container must handle.
    if words[:1] in (["run"], ["script"], ["classic"]):
        ended = stand_before()
        if ended is not None:
            return ended
    command = words[0] if words else ""
    parser = _parser(command)
    # Before argparse, whose own message lists all commands and no nearest one.
    if command and command not in COMMANDS and not command.startswith("-"):
        text = f"error: unknown command {command!r}; {nearest(command, COMMANDS)}"
        print(text, file=sys.stderr)
        return EXIT_CONFIG
    args = parsed(parser, words)
    if not hasattr(args, "perform"):
        parser.print_help()
        return 0
    try:
        return int(args.perform(args))
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
    if argv[:1] != ["script"]:
        return train_words(argv)
    end = next((i for i, word in enumerate(argv) if word.endswith(".py")), len(argv))
    return [*train_words(argv[:end]), *argv[end:]]


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser; only the module of `command` is imported."""
    parser = argparse.ArgumentParser(
        prog="bundlerun",
        description="Train a model that is cut into stages, on bundles of devices.",
        epilog="bundlerun COMMAND --help shows the options of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (path, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        # Other subcommands would cost the import of their module, only for options nobody sees.
        if name == command:
            module = importlib.import_module(path)
            module.add_arguments(sub)
            shorten(sub)
            sub.set_defaults(perform=module.run, parser=sub)
    return parser


def _version() -> str:
    try:
        return f"bundlerun {metadata.version('bundlerun')}"
    except metadata.PackageNotFoundError:
        return "bundlerun (not installed)"
