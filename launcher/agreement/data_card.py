"""What can be said of a data set at a glance, without torch and without opening a sample.

Two nodes, or two starts of a run, with other data nearly always differ in it; what only a list of
all samples shows, the recipe finds once it has opened them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bundlerun.launcher.preflight import SYNTHETIC, data_path

_LOOK_BYTES = 1 << 20
"""That much of a file's beginning, and of its end, is read."""
_SPLITS = ("train", "val")
_OF_VAL = ("valid", "validation")
_SHARDS = (".tar", ".parquet")


def data_card(data: str) -> str:
    """A line that other data does not have; empty where nothing is known.

    Where the data is does not count: nodes may have copies at different places.
    """
    path = data_path(data)
    try:
        if data == SYNTHETIC:
            return SYNTHETIC
        if path.is_file():
            return _file_card(path)
        shards = _shards(path)
        if shards:
            return _shards_card(path, shards)
        if (path / _SPLITS[0]).is_dir():
            return _classes_card(path)
    except OSError:
        pass  # the recipe says what is wrong with it
    return ""


def _file_card(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_LOOK_BYTES))
        file.seek(max(0, size - _LOOK_BYTES))
        digest.update(file.read(_LOOK_BYTES))
    return f"a file of {size} bytes ({digest.hexdigest()[:12]})"


def _shards(root: Path) -> list[Path]:
    """The shards of DATA and of its folders for training and validation."""
    folders = [root, *(root / split for split in (*_SPLITS, *_OF_VAL))]
    return sorted(
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name.lower().endswith(_SHARDS) and not path.name.startswith(".")
    )


def _shards_card(root: Path, shards: Sequence[Path]) -> str:
    text = "\n".join(f"{path.relative_to(root)} {path.stat().st_size}" for path in shards)
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
    return f"{len(shards)} shards: {shards[0].name}, ... ({digest})"


def _classes_card(root: Path) -> str:
    names = {split: _class_names(root / split) for split in _SPLITS}
    text = "\n".join(f"{split}/{name}" for split in _SPLITS for name in names[split])
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
    first = ", ".join(names[_SPLITS[0]][:3])
    return f"{len(names[_SPLITS[0]])} classes: {first}, ... ({digest})"


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
