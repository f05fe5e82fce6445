"""A trained model as a folder that its own library loads.

timm            timm.create_model("local-dir:FOLDER", pretrained=True)
transformers    AutoModelFor...from_pretrained("FOLDER")
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import OfLibrary, parse_model
from bundlerun.launcher.run_folder.checkpoints import Checkpoint
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.use.whole import whole_model


def write(config: TrainConfig, checkpoint: Checkpoint, folder: Path, *, average: bool) -> None:
    """Fills `folder`, which is there and empty.

    Raises:
        ConfigError: the model's library has no such layout.
        CheckpointError: the checkpoint is of another model.
    """
    known = parse_model(config.model)
    if not isinstance(known, OfLibrary) or known.library == "torchvision":
        raise ConfigError(
            f"--model {config.model!r} of this run is loaded from a state_dict, and from no "
            "folder; leave --format library out, and give a file that ends in .pth"
        )
    model = whole_model(config, load_recipe(config), checkpoint, average=average)
    names = [str(name) for name in checkpoint.about.get("classes") or ()]
    if known.library == "timm":
        _for_timm(model, folder, names, checkpoint.about.get("preprocessing") or {})
    else:
        _for_transformers(model, folder, names)


def _for_timm(
    model: nn.Module, folder: Path, names: list[str], preprocessing: Mapping[str, Any]
) -> None:
    hub = importlib.import_module("timm.models._hub")
    about = {"label_names": names} if names else {}
    hub.save_for_hf(
        model,
        folder,
        model_config=about,
        safe_serialization=True,
        data_config=timm_data(preprocessing) if preprocessing else None,
    )


def timm_data(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What is done to an image in validation, in timm's words."""
    side, resize = preprocessing["center_crop"], preprocessing["resize"]
    is_whole = isinstance(resize, list)
    return {
        "input_size": (3, side, side),
        "interpolation": preprocessing["interpolation"],
        "mean": tuple(preprocessing["mean"]),
        "std": tuple(preprocessing["std"]),
        # Theirs is a share of the resized image; the whole of it is squeezed into a square.
        "crop_pct": 1.0 if is_whole else side / resize,
        "crop_mode": "squash" if is_whole else "center",
    }


def _for_transformers(model: Any, folder: Path, names: list[str]) -> None:  # noqa: ANN401
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
