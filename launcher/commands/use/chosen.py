"""The checkpoint that is asked for, and the configuration that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bundlerun.launcher.commands.arguments.run_folder import BEST, NEWEST
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.options.declared import options_of, resolve
from bundlerun.launcher.run_folder.checkpoints import (
    Checkpoint,
    best_of,
    choose,
    find_damage,
    read_manifest,
    survey,
)
from bundlerun.launcher.run_folder.paths import RunPaths

_NOT_REPEATED: Mapping[str, Any] = {
    "run_dir": "",
    "init_from": "",
    "new_head": "auto",
    "snapshot": "off",
    "snapshot_dir": "",
    "tensorboard": False,
    "validate": True,
    "verify_replicas": False,
    "verify_steps": -1,
    "quarantine": False,
}
"""What training does besides, and using a model does not."""
_OF_A_CUT: Mapping[str, Any] = {
    "cut": (),
    "chunks": 1,
    "schedule": "auto",
    "recompute": "none",
}


def chosen(paths: RunPaths, which: str) -> Checkpoint:
    """The checkpoint that `--checkpoint` names, undamaged.

    Raises:
        ConfigError: it names none.
        CheckpointError: there is none, or it is damaged.
    """
    if which == BEST:
        return pick(paths, best=True)
    if which == NEWEST:
        return pick(paths)
    if not which.isdecimal():
        raise ConfigError(f"--checkpoint {which!r} is none of: {BEST}, {NEWEST}, a step's number")
    return pick(paths, step=int(which))


def trained_config(
    checkpoint: Checkpoint, changes: Mapping[str, object], *, data: str = ""
) -> TrainConfig:
    """The configuration of training, for using what came of it; nothing is read from outside.

    Args:
        changes: options that are others here, by field name. With `shape`, what belongs to the cut
            is left to the defaults.
        data: in place of what was trained with.

    Raises:
        CheckpointError: the checkpoint does not say how it was trained.
        ConfigError: options do not go together.
    """
    kept = checkpoint.config
    if not kept:
        raise CheckpointError(
            f"checkpoint {str(checkpoint.folder)!r} does not say what it was trained with, as one "
            "of an own loop does not; bundlerun export writes its weights"
        )
    options = {field.name for field in options_of(TrainConfig)}
    values = {name: value for name, value in kept.items() if value is not None}
    values |= _NOT_REPEATED
    if "shape" in changes:
        values |= _OF_A_CUT
    values = {name: value for name, value in values.items() if name in options and value != ()}
    found = resolve(
        TrainConfig,
        changes,
        environ={},
        toml={name: value for name, value in values.items() if value != []},
        toml_name=f"checkpoint {checkpoint.folder.name}",
    )
    return replace(found.value, data=data or str(kept.get("data") or ""))


def pick(paths: RunPaths, *, step: int | None = None, best: bool = False) -> Checkpoint:
    """The checkpoint of `step`, the best, or the newest undamaged one.

    Raises:
        ConfigError: there are some, but not of `step`, or none with a validation.
        CheckpointError: there is none, or the one asked for is damaged.
    """
    surveyed = survey(paths)
    found = surveyed.found
    if not found and not surveyed.broken:
        raise CheckpointError(
            f"there is no checkpoint in {str(paths.checkpoints)!r}; the first one is written at "
            "the end of an epoch, or after --checkpoint-steps"
        )
    # A checkpoint that is asked for is never replaced by another; only the newest falls back.
    if step is not None:
        return _undamaged(_by_step(paths, found, step))
    if best:
        return _undamaged(_best(found))
    chosen = choose(surveyed)
    if chosen is None:
        raise CheckpointError(
            f"every checkpoint in {str(paths.checkpoints)!r} is damaged; train again into a new "
            "--run-dir"
        )
    return chosen


def _by_step(paths: RunPaths, found: list[Checkpoint], step: int) -> Checkpoint:
    folder = paths.checkpoint(step)
    if folder.is_dir():
        try:
            return read_manifest(folder)
        except CheckpointError as exc:
            raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: {exc}") from exc
    steps = ", ".join(str(c.step) for c in reversed(found))
    raise ConfigError(f"there is no checkpoint of step {step}; there are: {steps}")


def _best(found: list[Checkpoint]) -> Checkpoint:
    chosen = best_of(found)
    if chosen is None:
        raise ConfigError(
            "--best needs a checkpoint with a validation, and none has one; leave it out for "
            "the newest, or train with --validate"
        )
    return chosen


def _undamaged(checkpoint: Checkpoint) -> Checkpoint:
    damage = find_damage(checkpoint)
    if damage is not None:
        raise CheckpointError(
            f"checkpoint {str(checkpoint.folder)!r} is damaged: {damage}; choose another --step, "
            "or none for the newest that is not"
        )
    return checkpoint
