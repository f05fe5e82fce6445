"""`bundlerun export`: a checkpoint becomes a file that the unsplit model loads."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from bundlerun.launcher.commands.use.chosen import pick
from bundlerun.launcher.errors import EXIT_DONE, ConfigError, NodeError
from bundlerun.launcher.meeting.default_folder import LATEST
from bundlerun.launcher.run_folder.adapters import model_state
from bundlerun.launcher.run_folder.checkpoints import RAW, Checkpoint
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.launcher.run_folder.paths import RunPaths

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun export`."""
    parser.description = (
        "Write the model of a run as one plain state_dict, which the unsplit model loads with "
        "strict=True, and FILE.json with its classes and the preprocessing of its input."
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
        metavar="FILE",
        help="file to write; its suffix says how: .safetensors or .pt",
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


def run(args: argparse.Namespace) -> int:
    """Writes the file; returns the exit code.

    Raises:
        ConfigError: the output, the run folder, --step or --best cannot be.
        CheckpointError: there is no checkpoint, or the one asked for is damaged.
        NodeError: the output cannot be written.
    """
    output = Path(args.output)
    _check_output(output)
    paths = RunPaths(Path(args.run_folder))
    if not paths.root.is_dir():
        raise ConfigError(
            f"run folder {args.run_folder!r} does not exist; give the --run-dir of a run"
        )
    checkpoint = pick(paths, step=args.step, best=args.best)
    state = model_state(checkpoint, average=args.ema)
    beside = output.with_name(f"{output.name}.json")
    with ExitStack() as stack:
        stack.enter_context(_failures(output))
        # An export that fails leaves an older one as it was.
        weights = stack.enter_context(_written(output, _writer(output, state)))
        about = stack.enter_context(_written(beside, partial(_write_about, checkpoint, args.ema)))
        # A kill in between leaves weights without words about them, never with those of others.
        beside.unlink(missing_ok=True)
        weights.replace(output)
        about.replace(beside)
    print(f"{output}: {len(state)} tensors of step {checkpoint.step}; {beside.name}: about them")
    return EXIT_DONE


def _check_output(output: Path) -> None:
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"--output {str(output)!r} must end in one of: {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise ConfigError(
            f"folder {str(output.parent)!r} of --output does not exist; make it first"
        )


def about_model(checkpoint: Checkpoint, *, average: bool = False) -> dict[str, object]:
    """What who uses the model has to know: which it is, its classes, what is done to the input.

    Args:
        average: it is that of the weights.
    """
    config, progress = checkpoint.config, checkpoint.progress
    metrics = {name: value for name, value in progress.metrics.items() if isfinite(value)}
    raw = {name[len(RAW) :]: v for name, v in metrics.items() if name.startswith(RAW)}
    if raw:  # both were validated
        metrics = {n: v for n, v in metrics.items() if not n.startswith(RAW)} if average else raw
    return {
        "recipe": config.get("recipe"),
        "model": config.get("model"),
        "step": progress.step,
        "epoch": progress.epoch,
        "metrics": metrics,
        "versions": dict(checkpoint.versions),
        **checkpoint.about,
    }


def _write_about(checkpoint: Checkpoint, average: bool, path: Path) -> None:
    about = about_model(checkpoint, average=average)
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _writer(output: Path, state: dict[str, Tensor]) -> Callable[[Path], None]:
    if output.suffix == ".pt":
        import torch

        return lambda path: torch.save(state, path)
    from safetensors.torch import save_file

    return lambda path: save_file(state, path, metadata={"format": "pt"})


@contextmanager
def _failures(output: Path) -> Iterator[None]:
    """Says that the output cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as exc:
        raise NodeError(f"cannot write --output {str(output)!r}: {exc}") from exc


@contextmanager
def _written(output: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """A whole file under another name in the same folder, which is gone again afterwards."""
    temporary = name_beside(output)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; safetensors makes files 0600
        write(temporary)
        temporary.chmod(mode)
        # Before the rename, or a crash of the machine could leave an empty file in its place.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
