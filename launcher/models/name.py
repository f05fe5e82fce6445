"""What `--model` names: a model of a library, or a function of the user's own.

    resnet18                     a classification model of torchvision
    torchvision:deeplabv3_...    any of torchvision, those for detection and others, too
    timm:convnext_tiny           a model of timm
    hf:FOLDER                    the model of transformers that FOLDER/config.json describes
    path/to/file.py:build        a function in a file, `build` where none is named
    package.module:build         the same in a module that Python finds

Names are read from the sources of torchvision and timm: importing them takes seconds, and a wrong
name has to be reported at once.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal, get_args

from bundlerun.launcher.errors import ConfigError, nearest

OF_IMAGES = "image-classification"
"""The default recipe."""
OF_TEXT = "language-model"
OF_PIXELS = "segmentation"
OF_BOXES = "detection"
OF_TEXTS = "sequence-classification"
BUILDING = (OF_IMAGES, OF_TEXT, OF_TEXTS, OF_PIXELS, OF_BOXES)
"""The recipes that come with bundlerun and build what `--model` names."""
RECIPES = (*BUILDING, "characters")
"""All that come with it."""
Library = Literal["torchvision", "timm", "hf"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
HF_CONFIG = "config.json"
_BUILDER = re.compile(
    r"""^@register_model(?:\((?:name\s*=\s*)?(?:["'](\w+)["'])?\s*\))?\n"""
    r"""(?:[^d\n].*\n)*?def (\w+)""",
    re.MULTILINE,
)
_OLD_NAMES = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.M | re.S)
_KEY = re.compile(r"""^\s*["'](\w+)["']\s*:""", re.MULTILINE)
_NEEDS = {"timm": "timm", "hf": "transformers"}
"""The package behind a library that is an extra of the same name."""


@dataclass(frozen=True, slots=True)
class OfLibrary:
    """A model of a library: its name there, or the folder that describes it."""

    library: Library
    name: str


@dataclass(frozen=True, slots=True)
class OfModule:
    """A function of a module that Python finds."""

    module: str
    function: str


@dataclass(frozen=True, slots=True)
class OfFile:
    """A function in a user's file."""

    file: str
    function: str


ModelName = OfLibrary | OfModule | OfFile


def parse_model(name: str) -> ModelName:
    """What a text after `--model` names; a word by itself is a model of torchvision."""
    own = parse_file(name)
    if own is not None:
        return OfFile(*own)
    before, colon, after = name.partition(":")
    for library in LIBRARIES:
        if colon and before == library:
            return OfLibrary(library, after)
    return OfModule(before, after) if colon else OfLibrary("torchvision", name)


def parse_file(name: str) -> tuple[str, str] | None:
    """File and function where `--model` names a user's own file; None for all else."""
    file, _, function = name.rpartition(":")
    if file.endswith(".py") or name.endswith(".py"):
        return (file, function) if file else (name, "build")
    return None


def is_own(name: str) -> bool:
    """Whether `--model` names a function of the user's own."""
    return not isinstance(parse_model(name), OfLibrary)


def package_behind(name: str) -> tuple[str, ...]:
    """The package of a library that is an extra, which gives the model of this name; or none."""
    known = parse_model(name)
    if isinstance(known, OfLibrary) and known.library in _NEEDS:
        return (_NEEDS[known.library],)
    return ()


def check_model(model: str, recipe: str) -> None:
    """Raises ConfigError where `--model` names nothing that exists; imports nothing.

    The ranks report what only an import can find. A user's own recipe may read the name as it
    likes.
    """
    if recipe in BUILDING:
        check_named(model)


def check_named(model: str) -> None:
    """Raises ConfigError where `--model` names nothing that exists; imports nothing."""
    match parse_model(model):
        case OfFile(file):
            if not Path(file).is_file():
                raise ConfigError(f"--model {file!r}: no such file")
        case OfModule(module, function):
            _check_module(model, module, function)
        case OfLibrary("hf", folder):
            _check_hf_folder(model, folder)
            _check_installed("hf", model)
        case OfLibrary("timm", name):
            _check_installed("timm", model)
            # What is after a dot names weights, of which none are fetched.
            check_known(name.partition(".")[0], timm_names(), prefix="timm:", also=_old_timm_names)
        case OfLibrary(_, name) if ":" in model:
            check_known(name, torchvision_names(classifies=False), prefix="torchvision:")
        case OfLibrary(_, name):
            check_known(name, torchvision_names(), also=lambda: _elsewhere(name))


def check_known(
    name: str,
    known: Collection[str],
    *,
    prefix: str = "",
    also: Callable[[], Collection[str]] = tuple,
) -> None:
    """Raises ConfigError where `name` is none of a library's.

    Args:
        known: its names, in order; nothing: they are not known here, and all will do.
        prefix: with which the user has typed it.
        also: further names that will do, which no message proposes.
    """
    if known and name not in known and name not in also():
        raise ConfigError(
            f"unknown --model {prefix + name!r}; {nearest(name, known)}; or path/to/file.py:build"
        )


def _elsewhere(name: str) -> Collection[str]:
    """Nothing; raises ConfigError where another library, or another task, has that name."""
    if name in torchvision_names(classifies=False):
        raise ConfigError(
            f"--model {name!r} is no classification model of torchvision; use torchvision:{name}, "
            "with a recipe for what it gives"
        )
    # To list all of timm's takes a tenth of a second, which a wrong name need not wait for.
    if any(f"\ndef {name}(" in code for code in _sources("timm", ("",))) and name in timm_names():
        raise ConfigError(f"unknown --model {name!r} of torchvision; timm has it: use timm:{name}")
    return ()


def _check_installed(library: Library, model: str) -> None:
    package = _NEEDS[library]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"--model {model!r} needs the package {package}, which is not installed; pip install "
            f"'bundlerun[{library}]'"
        )


def check_adapters(rank: int) -> None:
    """Raises ConfigError where there are to be adapters, and no package makes them."""
    if rank and importlib.util.find_spec("peft") is None:
        raise ConfigError(
            f"--lora {rank} needs the package peft, which is not installed; pip install "
            "'bundlerun[lora]'"
        )


def _check_hf_folder(model: str, folder: str) -> None:
    path = Path(folder).expanduser()
    if not folder or not path.is_dir():
        raise ConfigError(
            f"--model {model!r}: no such folder; give a local one with {HF_CONFIG}, such as "
            "save_pretrained writes; nothing is downloaded"
        )
    if not (path / HF_CONFIG).is_file():
        raise ConfigError(
            f"--model {model!r}: the folder has no {HF_CONFIG}; give the folder that a model of "
            "transformers was saved to with save_pretrained"
        )
    import json  # `--help` needs none of it

    try:
        config = json.loads((path / HF_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"--model {model!r}: its {HF_CONFIG} cannot be read as JSON ({exc}); save the model "
            "once more with save_pretrained"
        ) from exc
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(
            f"--model {model!r}: its {HF_CONFIG} names no model_type; give the folder that a model "
            "of transformers was saved to with save_pretrained"
        )


def _check_module(model: str, module: str, function: str) -> None:
    if not function:
        raise ConfigError(f"--model {model!r} names no function; write {module}:build")
    if find_module(module) is None:
        near = nearest(f"{module}:", [f"{name}:" for name in LIBRARIES])
        raise ConfigError(
            f"--model {model!r}: Python finds no module {module!r}, neither in the current folder "
            f"nor installed; {near}; or path/to/file.py:build"
        )


def find_module(name: str) -> ModuleSpec | None:
    """Where Python, or the current folder, has a module; imports nothing."""
    places: list[str] | None = None
    spec = None
    for part in name.split("."):
        # find_spec of a dotted name imports the packages above it, which may take seconds.
        if places is None:
            spec = _find_top(part) or PathFinder.find_spec(part, [str(Path.cwd())])
        else:
            spec = PathFinder.find_spec(part, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return spec


def _find_top(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if name else None
    except ValueError:  # loaded without a spec, as __main__ is
        return None


def torchvision_names(*, classifies: bool = True) -> list[str]:
    """Models of the installed torchvision; nothing where its sources do not say.

    Args:
        classifies: those for images only. Quantized ones do not train, and are left out.
    """
    folders = ("",) if classifies else ("", "detection", "optical_flow", "segmentation", "video")
    return sorted(name for text in _sources("torchvision", folders) for name in _names_in(text))


def timm_names() -> list[str]:
    """Models of the installed timm; nothing where there is none, or its sources do not say."""
    return sorted(name for text in _sources("timm", ("",)) for name in _names_in(text))


def _old_timm_names() -> list[str]:
    """Names that models of timm once had, which it still knows."""
    texts = _sources("timm", ("",))
    return [n for t in texts for block in _OLD_NAMES.findall(t) for n in _KEY.findall(block)]


def _names_in(text: str) -> Iterator[str]:
    for given, function in _BUILDER.findall(text):
        yield given or function


def _sources(package: str, folders: Collection[str]) -> Iterator[str]:
    """The texts of a library's models, below `models`."""
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        for folder in folders:
            for file in sorted(Path(place, "models", folder).glob("*.py")):
                yield file.read_text(encoding="utf-8", errors="replace")
