"""Which shards of DATA are for training and for validation; opens none.

    DATA/train/*.tar    DATA/val/*.tar      a folder for each
    DATA/train*.tar     DATA/val*.tar       by the beginning of their names
    DATA/*.tar                              all for training, with --no-validate

or .parquet in place of .tar.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.image_index import is_hidden

Kind = Literal[".tar", ".parquet"]
KINDS: tuple[Kind, ...] = (".tar", ".parquet")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tzst")
_TRAIN, _VAL = "train", "val"
_VAL_FOLDERS = (_VAL, "valid", "validation")
LAYOUT = (
    "shards are DATA/train/NAME.tar and DATA/val/NAME.tar, or DATA/train-NAME.tar and "
    "DATA/val-NAME.tar, or all of them .parquet"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Files of one kind, in order of their names.

    Args:
        train: at least one.
        val: nothing: there is no validation.
        kind: of all of them.
    """

    train: Sequence[Path]
    val: Sequence[Path]
    kind: Kind


def has_shards(root: Path) -> bool:
    """Whether DATA has shards, also such as cannot be used.

    Raises:
        ConfigError: a folder cannot be listed.
    """
    return any(_shards_in(folder) for folder in (root, root / _TRAIN))


def find_shards(root: Path, *, needs_val: bool) -> Shards:
    """The shards that DATA names.

    Raises:
        ConfigError: there are none, they are of two kinds or packed, or among other data.
    """
    train, val = _parts(root)
    for name, found, is_needed in ((_TRAIN, train, True), (_VAL, val, needs_val)):
        if is_needed and not found:
            way = "" if name == _TRAIN else ", or use --no-validate"
            raise ConfigError(
                f"nothing says which shards of DATA {str(root)!r} are for {name}: {LAYOUT}{way}"
                if name == _VAL
                else f"DATA {str(root)!r} has no shards for {name}; {LAYOUT}"
            )
    used = [*train, *(val if needs_val else ())]
    for path in used:
        if path.name.lower().endswith(_PACKED):
            raise ConfigError(
                f"the shard {str(path)!r} is compressed, and so has no samples that can be read "
                "by themselves; unpack it to a plain .tar"
            )
    kinds = {path.suffix.lower(): path for path in used}
    if len(kinds) > 1:
        tar, parquet = (kinds[kind].name for kind in KINDS)
        raise ConfigError(
            f"DATA {str(root)!r} has shards of two kinds, {tar!r} and {parquet!r}; leave one kind "
            "in the folder"
        )
    (kind,) = kinds
    return Shards(
        train=train, val=val if needs_val else (), kind=".tar" if kind == ".tar" else ".parquet"
    )


def _parts(root: Path) -> tuple[list[Path], list[Path]]:
    """The shards for training and for validation."""
    here = _shards_in(root)
    folders = [root / name for name in (_TRAIN, *_VAL_FOLDERS)]
    below = {folder: _shards_in(folder) for folder in folders}
    if here and any(below.values()):
        other = next(folder for folder, found in below.items() if found)
        raise ConfigError(
            f"DATA {str(root)!r} has shards ({here[0].name!r}), and so has its folder "
            f"{other.name!r}; {LAYOUT}"
        )
    if not here:
        for folder in (folder for folder, found in below.items() if found):
            _refuse_classes(folder)
        return below[folders[0]], [path for folder in folders[1:] for path in below[folder]]
    train = [path for path in here if path.name.startswith(_TRAIN)]
    val = [path for path in here if path.name.startswith(_VAL)]
    # Where no name says anything, all are for training: `find_shards` asks for --no-validate.
    return (train if train or val else here), val


def _shards_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [
                Path(entry.path)
                for entry in entries
                if entry.name.lower().endswith((*KINDS, *_PACKED))
                and not is_hidden(entry.name)
                and entry.is_file()
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise ConfigError(f"cannot list {str(folder)!r}: {exc.strerror}") from exc
    return sorted(found)


def _refuse_classes(folder: Path) -> None:
    """Raises ConfigError where class folders are next to shards: one of the two would be lost."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    if names:
        raise ConfigError(
            f"{str(folder)!r} has shards and class folders, such as {names[0]!r}; leave one of the "
            "two in it"
        )
