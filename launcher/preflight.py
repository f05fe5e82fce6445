"""Is this machine fit for a run? Asked before torch is imported; what it refuses costs no time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from bundlerun.launcher.errors import ConfigError, NodeError

OLDEST_TORCH = (2, 11)
SYNTHETIC = "synthetic"


def _version_of(package: str) -> str:
    from importlib import metadata  # what only has options to show does not wait for it

    return metadata.version(package)


def check_torch(version_of: Callable[[str], str] = _version_of) -> None:
    """Raises NodeError where torch is missing or too old; does not import it."""
    wanted = ".".join(map(str, OLDEST_TORCH))
    try:
        version = version_of("torch")
    except ModuleNotFoundError as exc:
        raise NodeError(
            f"torch is not installed; pip install 'torch>={wanted}' torchvision"
        ) from exc
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match or (int(match[1]), int(match[2])) < OLDEST_TORCH:
        raise NodeError(
            f"torch {version} is too old; pip install 'torch>={wanted}' and the torchvision "
            "that goes with it"
        )


def check_writable(folder: Path, option: str) -> None:
    """Raises NodeError where `folder` cannot be made or written; makes nothing.

    Args:
        option: the option that names the folder.
    """
    # The nearest folder that exists decides whether the missing ones can be made in it.
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NodeError(f"{option} {str(folder)!r}: {str(there)!r} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise NodeError(
            f"{option} {str(folder)!r}: no permission to write to {str(there)!r}; give another "
            f"{option}"
        )


def data_path(data: str) -> Path:
    """The path of DATA; "~" is the home folder, which no shell expands inside a variable."""
    path = Path(data)
    try:
        return path.expanduser()
    except RuntimeError:  # no user of that name: take it as it is written
        return path


def check_data(data: str, recipe: str) -> None:
    """Raises ConfigError where a recipe that comes with bundlerun is given data that is not there.

    The recipe checks more once it is imported. A user's own recipe may read DATA as it likes.
    """
    if data != SYNTHETIC and not recipe.endswith(".py") and not data_path(data).exists():
        raise ConfigError(
            f"no data at {data!r}: no such file or folder; give an ImageFolder root with train/ "
            f"and val/, shards, what --recipe reads, such as a text file, or {SYNTHETIC}"
        )
