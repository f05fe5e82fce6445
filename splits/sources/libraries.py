"""Models of torchvision, timm and transformers, freshly initialised; nothing is downloaded."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, cast

import torchvision
from torch import nn

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.models.name import HF_CONFIG
from bundlerun.launcher.models.user_file import users_code

# Their constructors warn unless the initialisation is chosen; this is the one of torchvision's
# reference training.
_CHOOSE_INIT = {"googlenet", "inception_v3"}
_BARE = ("Model", "PreTrainedModel", "Encoder", "Decoder")
"""How the names of transformers' classes end that have no head for a task."""


def of_torchvision(name: str, num_outputs: int) -> nn.Module:
    """A model of torchvision, of any task."""
    build = torchvision.models.get_model_builder(name)
    takes = inspect.signature(build).parameters
    options: dict[str, object] = {"weights": None}
    if "weights_backbone" in takes:
        options["weights_backbone"] = None  # else it is fetched
    # Models of optical flow have no classes; those for images take them among all else.
    if num_outputs and not name.startswith("raft"):
        options["num_classes"] = num_outputs
    if name in _CHOOSE_INIT:
        options["init_weights"] = True
    return cast(nn.Module, build(**options))


def of_timm(name: str, num_outputs: int) -> nn.Module:
    """A model of timm; what its name has after a dot chooses settings, and no weights.

    Raises:
        ConfigError: timm does not make it.
    """
    # By name: it is an extra, and the types of one that is there are not checked.
    timm = importlib.import_module("timm")
    options = {"num_classes": num_outputs} if num_outputs else {}
    with users_code(f"timm.create_model({name!r})"):
        return cast(nn.Module, timm.create_model(name, pretrained=False, **options))


def of_hf(folder: str, num_outputs: int, default_class: str, takes: str = "") -> nn.Module:
    """The model of transformers that a folder's config.json describes.

    Its class is the one that config.json names, where that has a head.

    Args:
        folder: local.
        num_outputs: of a head that classifies; others have what config.json says.
        default_class: where config.json names none with a head.
        takes: what it is going to be called with, in transformers' words; nothing: not known.

    Raises:
        ConfigError: transformers does not know the model, or not with this head; or it is called
            with something else.
    """
    transformers = importlib.import_module("transformers")
    path = Path(folder).expanduser()
    kind = json.loads((path / HF_CONFIG).read_text(encoding="utf-8"))["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"--model {'hf:' + folder!r}: transformers {transformers.__version__} has no model of "
            f"type {kind!r}; {nearest(kind, transformers.CONFIG_MAPPING)}; or install another "
            "version of it"
        )
    with users_code(f"the config.json of --model {'hf:' + folder!r}"):
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    name = _class_name(config, default_class)
    made_by = getattr(transformers, name, None)
    if made_by is None:
        raise ConfigError(
            f"--model {'hf:' + folder!r}: transformers {transformers.__version__} has no {name!r}; "
            f"{nearest(name, dir(transformers))}; or install another version of it"
        )
    # What an Auto class has a class for; it raises a page of them all.
    has = getattr(made_by, "_model_mapping", None)
    if has is not None and type(config) not in has:
        raise ConfigError(
            f"--model {'hf:' + folder!r} is of type {kind!r}, for which transformers has no "
            f"{name}; give another model, or another --recipe"
        )
    wanted = getattr(made_by, "main_input_name", takes) or takes
    if takes and wanted != takes:
        raise ConfigError(
            f"--model {'hf:' + folder!r} is a {name}, which takes {wanted}, and this recipe has "
            f"{takes}; give another model, or another --recipe"
        )
    if num_outputs and "Classification" in name:
        config.num_labels = num_outputs
    with users_code(f"{name} of transformers"):
        # What has no head of its own is made for a configuration by an Auto class.
        make = made_by.from_config if name.startswith("Auto") else made_by
        return cast(nn.Module, make(config))


def _class_name(config: Any, default: str) -> str:  # noqa: ANN401 - transformers' own
    named = [str(name) for name in getattr(config, "architectures", None) or ()]
    with_head = [name for name in named if not name.endswith(_BARE)]
    return with_head[0] if with_head else default
