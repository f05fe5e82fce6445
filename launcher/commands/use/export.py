"""`bundlerun export`: a checkpoint becomes what the unsplit model, or another program, loads.

.safetensors, .pt, .pth    the plain state_dict, and FILE.json about it
.onnx                      the model itself, and FILE.json
--format library           a folder that the model's own library loads; about.json is in it
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from bundlerun.launcher.commands.use.chosen import pick, trained_config
from bundlerun.launcher.errors import EXIT_DONE, ConfigError, NodeError
from bundlerun.launcher.models.name import check_model
from bundlerun.launcher.run_folder.adapters import model_state
from bundlerun.launcher.run_folder.checkpoints import RAW, Checkpoint
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.launcher.run_folder.paths import RunPaths

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth")
"""Of files with a state_dict."""
ONNX = ".onnx"
_ONNX_PACKAGES = ("onnx", "onnxscript")
_ONNX_MODULE = "bundlerun.workers.use.onnx"
_LAYOUT_MODULE = "bundlerun.workers.use.layouts"


def run(args: argparse.Namespace) -> int:
    """Writes the file; returns the exit code.

    Raises:
        ConfigError: the output, the run folder, --step or --best cannot be.
        CheckpointError: there is no checkpoint, or the one asked for is damaged.
        NodeError: the output cannot be written.
    """
    output = Path(args.output)
    _check_output(output, args.format)
    paths = RunPaths(Path(args.run_folder))
    if not paths.root.is_dir():
        raise ConfigError(
            f"run folder {args.run_folder!r} does not exist; give the --run-dir of a run"
        )
    checkpoint = pick(paths, step=args.step, best=args.best)
    if args.format == "library":
        return _write_folder(output, checkpoint, average=args.ema)
    if output.suffix == ONNX:
        write: Callable[[Path], None] = _onnx_writer(checkpoint, average=args.ema)
        what = "the model"
    else:
        state = model_state(checkpoint, average=args.ema)
        write, what = _writer(output, state), f"{len(state)} tensors"
    beside = output.with_name(f"{output.name}.json")
    with ExitStack() as stack:
        stack.enter_context(_failures(output))
        # An export that fails leaves an older one as it was.
        weights = stack.enter_context(_written(output, write))
        about = stack.enter_context(_written(beside, partial(_write_about, checkpoint, args.ema)))
        # A kill in between leaves weights without words about them, never with those of others.
        beside.unlink(missing_ok=True)
        weights.replace(output)
        about.replace(beside)
    print(f"{output}: {what} of step {checkpoint.step}; {beside.name}: about them")
    return EXIT_DONE


def _check_output(output: Path, form: str) -> None:
    suffixes = (*SUFFIXES, ONNX)
    if form == "library":
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConfigError(
                f"--output {str(output)!r} is there already; give the name of a new folder"
            )
    elif output.suffix not in suffixes:
        raise ConfigError(
            f"--output {str(output)!r} must end in one of: {', '.join(suffixes)}; a folder takes "
            "--format library"
        )
    elif output.suffix == ONNX:
        missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"{ONNX} needs the package {missing[0]}, which is not installed; pip install "
                "'bundlerun[onnx]'"
            )
    if not output.parent.is_dir():
        raise ConfigError(
            f"folder {str(output.parent)!r} of --output does not exist; make it first"
        )


def _write_folder(output: Path, checkpoint: Checkpoint, *, average: bool) -> int:
    """Writes what the model's library loads."""
    config = trained_config(checkpoint, {"shape": "1"})
    check_model(config.model, config.recipe)
    beside = name_beside(output)
    with _failures(output):
        try:
            beside.mkdir()
            write = importlib.import_module(_LAYOUT_MODULE).write
            write(config, checkpoint, beside, average=average)
            _write_about(checkpoint, average, beside / "about.json")
            for path in (*beside.iterdir(), beside):
                sync_to_disk(path)
            beside.replace(output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    print(f"{output}: the model of step {checkpoint.step}, as its library loads it")
    return EXIT_DONE


def sync_to_disk(path: Path) -> None:
    """Returns once a file, or the names in a folder, would survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _onnx_writer(checkpoint: Checkpoint, *, average: bool) -> Callable[[Path], None]:
    config = trained_config(checkpoint, {"shape": "1"})
    check_model(config.model, config.recipe)
    write = importlib.import_module(_ONNX_MODULE).write
    return lambda path: write(config, checkpoint, path, average=average)


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
    if output.suffix in (".pt", ".pth"):
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
