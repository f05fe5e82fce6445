"""`bundlerun evaluate`: loss and metrics of a checkpoint on other data, or on the run's own."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.commands.run import planned, say
from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.commands.use.chosen import chosen, trained_config
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.exchange_form import ALL
from bundlerun.launcher.models.name import OF_IMAGES, check_adapters, check_model
from bundlerun.launcher.models.recipes import check_recipe
from bundlerun.launcher.options.declared import Resolved, resolve
from bundlerun.launcher.preflight import SYNTHETIC, check_data, check_torch, data_path
from bundlerun.launcher.run_folder.checkpoints import Checkpoint
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

MODULE = "bundlerun.workers.use.evaluate"
_VAL = ("val", "valid", "validation")


def run(args: argparse.Namespace) -> int:
    """Prints loss and metrics.

    Raises:
        ConfigError: run, checkpoint, data or options cannot be.
        BundleError: it failed.
    """
    paths = run_paths(args.run_dir)
    check_torch()
    checkpoint = chosen(paths, args.checkpoint)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bundlerun-eval-")))
        config = trained_config(checkpoint, _changes(args, folder))
        data = args.data or config.data
        check_data(data, config.recipe)
        check_model(config.model, config.recipe)
        check_recipe(config.recipe, config.tokenizer)
        check_adapters(config.lora)
        config = replace(config, data=_laid_out(data, config.recipe, folder))
        of_folder = RunPaths(folder)
        write_text(of_folder.evaluation, json.dumps({"checkpoint": str(checkpoint.folder)}))
        code = _ranks(config, args) if args.shape else _alone(config, args.devices)
        if code != EXIT_DONE:
            return code
        if not of_folder.evaluated.is_file():
            return EXIT_FAILED  # who has failed has said why
        found = json.loads(of_folder.evaluated.read_text(encoding="utf-8"))
    about = {
        "run": str(paths.root),
        "checkpoint": checkpoint.folder.name,
        "step": checkpoint.step,
        "epoch": checkpoint.progress.epoch,
        "data": data,
    }
    print(json.dumps({**about, **found}, indent=2) if args.json else _text(checkpoint, data, found))
    return EXIT_DONE


def _changes(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    changes: dict[str, object] = {"run_dir": str(folder)}
    # A measurement of how to sum gradients, of which there are none.
    changes["sync"] = "local-master"
    changes["exchange"], changes["exchange_dtype"] = ALL, "float32"
    if not args.shape:
        changes["shape"] = "1"
    else:
        changes["shape"] = args.shape
    if args.precision:
        changes["precision"] = args.precision
    return changes


def _laid_out(data: str, recipe: str, folder: Path) -> str:
    """DATA as the recipe reads it, also where there is no part for training."""
    root = data_path(data)
    if recipe != OF_IMAGES or data == SYNTHETIC or not root.is_dir() or (root / "train").exists():
        return data
    if any(path.suffix in (".tar", ".parquet") for path in root.iterdir()):
        return data
    source = next((root / name for name in _VAL if (root / name).is_dir()), root)
    for part in ("train", "val"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / part).symlink_to(source.absolute(), target_is_directory=True)
    return str(folder / "data")


def _alone(config: TrainConfig, devices: DeviceChoice) -> int:
    if devices == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    importlib.import_module(MODULE).alone(config)
    return EXIT_DONE


def _ranks(config: TrainConfig, args: argparse.Namespace) -> int:
    """Over the devices of this machine; what fails is not tried again."""
    given = {"devices": args.devices, "standalone": True, "max_restarts": 0}
    given |= {"slots": args.slots} if args.slots else {}
    launch = resolve(LaunchConfig, given, environ={}, toml={})
    train = Resolved(config, {"shape": "option"})
    with planned(train, launch, os.environ) as start:
        from bundlerun.launcher.agent import elastic

        return elastic.launch(replace(start.plan, module=MODULE), say=say)


def _text(checkpoint: Checkpoint, data: str, found: Mapping[str, Any]) -> str:
    lines = [
        f"checkpoint   step {checkpoint.step}, epoch {checkpoint.progress.epoch}",
        f"data         {data}, {found['num_samples']:,} samples",
    ]
    values = {"loss": found["loss"], **found["metrics"]}
    lines += [f"{name:12} {value:.6g}" for name, value in values.items() if value is not None]
    return "\n".join(lines)
