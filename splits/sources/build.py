"""The model that `--model` names."""

from __future__ import annotations

from torch import nn

from bundlerun.launcher.model_name import OfFile, OfLibrary, OfModule, check_named, parse_model
from bundlerun.launcher.user_file import module_from_file, module_from_name
from bundlerun.splits.sources.libraries import of_hf, of_timm, of_torchvision
from bundlerun.splits.sources.users import built_by_user

IMAGES = "AutoModelForImageClassification"
"""What a model of transformers is for, where its config.json does not say."""


def build_model(
    name: str, num_outputs: int, *, hf_class: str = IMAGES
) -> nn.Module | list[nn.Module]:
    """The model that `--model` names, freshly initialised; one of the user's as they make it.

    Args:
        name: see `bundlerun.launcher.model_name`.
        num_outputs: classes; 0: as many as the model has by itself.
        hf_class: of transformers, for a model of it whose config.json names no head.

    Returns:
        The model, or its stages in order where the user's code has cut it.

    Raises:
        ConfigError: there is no such model, file, module or function, or its package is not
            installed.
    """
    check_named(name)
    match parse_model(name):
        case OfFile(file, function):
            module = module_from_file(file, "--model")
            return built_by_user(module, function, num_outputs, f"{file}:{function}", file)
        case OfModule(dotted, function):
            module = module_from_name(dotted, "--model")
            return built_by_user(module, function, num_outputs, name, dotted)
        case OfLibrary("timm", known):
            return of_timm(known, num_outputs)
        case OfLibrary("hf", folder):
            return of_hf(folder, num_outputs, hf_class)
        case OfLibrary(_, known):
            return of_torchvision(known, num_outputs)
