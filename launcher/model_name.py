"""What `--model` names: a model of torchvision, or a function in a user's own file.

The names of the former are read from torchvision's sources: importing it takes seconds, and a wrong
name has to be reported at once.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

from bundlerun.launcher.errors import ConfigError, nearest

OF_IMAGES = "image-classification"
"""The recipe that comes with bundlerun and builds what `--model` names."""
_BUILDER = re.compile(
    r"""^@register_model\((?:name\s*=\s*)?(?:["'](\w+)["'])?\s*\)\n(?:[^d\n].*\n)*?def (\w+)""",
    re.MULTILINE,
)


def parse_file(name: str) -> tuple[str, str] | None:
    """File and function where `--model` names a user's own; None for a model of torchvision."""
    file, _, function = name.rpartition(":")
    if file.endswith(".py") or name.endswith(".py"):
        return (file, function) if file else (name, "build")
    return None


def check_known(name: str, known: Collection[str]) -> None:
    """Raises ConfigError where `name` is none of torchvision's.

    Args:
        known: its names, in order; nothing: they are not known here, and all will do.
    """
    if known and name not in known:
        raise ConfigError(
            f"unknown --model {name!r}; {nearest(name, known)}; or path/to/file.py:build"
        )


def check_model(model: str, recipe: str) -> None:
    """Raises ConfigError where `--model` names nothing that exists; imports nothing.

    The ranks report what only an import can find. A user's own recipe may read the name as it
    likes.
    """
    if recipe != OF_IMAGES:
        return
    own = parse_file(model)
    if own is None:
        check_known(model, torchvision_names())
    elif not Path(own[0]).is_file():
        raise ConfigError(f"--model {own[0]!r}: no such file")


def torchvision_names() -> list[str]:
    """Classification models of the installed torchvision; nothing where its sources do not say."""
    spec = importlib.util.find_spec("torchvision")
    folders = (spec and spec.submodule_search_locations) or ()
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return sorted(
        given or function
        for file in files
        for given, function in _BUILDER.findall(file.read_text(encoding="utf-8", errors="replace"))
    )
