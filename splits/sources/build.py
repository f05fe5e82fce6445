"""The model that `--model` names."""

from __future__ import annotations

from types import ModuleType

from torch import nn

from bundlerun.launcher.models.name import OfFile, OfLibrary, OfModule, check_named, parse_model
from bundlerun.launcher.models.user_file import module_from_file, module_from_name
from bundlerun.splits.sources.libraries import of_hf, of_timm, of_torchvision
from bundlerun.splits.sources.users import built_by_user, function_of

IMAGES = "AutoModelForImageClassification"
"""What a model of transformers is for, where its config.json does not say."""


def build_model(
    name: str, num_outputs: int, *, hf_class: str = IMAGES, hf_takes: str = ""
) -> nn.Module | list[nn.Module]:
    """The model that `--model` names, freshly initialised; one of the user's as they make it.

    Args:
        name: see `bundlerun.launcher.models.name`.
        num_outputs: classes; 0: as many as the model has by itself.
        hf_class: of transformers, for a model of it whose config.json names no head.
        hf_takes: what a model of transformers is going to be called with, as its
            `main_input_name` says it; nothing: not known.

    Returns:
        The model, or its stages in order where the user's code has cut it.

    Raises:
        ConfigError: there is no such model, file, module or function, or its package is not
            installed.
    """
    check_named(name)
    match parse_model(name):
        case OfFile(file, function) as own:
            return built_by_user(_module_of(own), function, num_outputs, f"{file}:{function}", file)
        case OfModule(dotted, function) as own:
            return built_by_user(_module_of(own), function, num_outputs, name, dotted)
        case OfLibrary("timm", known):
            return of_timm(known, num_outputs)
        case OfLibrary("hf", folder):
            return of_hf(folder, num_outputs, hf_class, hf_takes)
        case OfLibrary(_, known):
            return of_torchvision(known, num_outputs)


def check_importable(name: str) -> None:
    """Imports the user's own code that `--model` names, if it names any; builds nothing.

    Raises:
        ConfigError: it cannot be imported, or has no such function.
    """
    own = parse_model(name)
    if not isinstance(own, OfLibrary):
        where = own.file if isinstance(own, OfFile) else own.module
        function_of(_module_of(own), own.function, where)


def _module_of(own: OfFile | OfModule) -> ModuleType:
    if isinstance(own, OfFile):
        return module_from_file(own.file, "--model")
    return module_from_name(own.module, "--model")
