"""The files that `--init-from` names; they are looked at without torch.

model.safetensors, model.pth           a file
model.safetensors.index.json           the index of several
FOLDER                                 has one of these, as save_pretrained writes them
RUN, RUN/checkpoints/step-000000120    a run of ours, its newest checkpoint or this one
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import is_zipfile

from bundlerun.launcher.choices import Reading
from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.models.name import OfLibrary, parse_model
from bundlerun.launcher.run_folder.checkpoints import (
    MANIFEST,
    Checkpoint,
    choose,
    read_manifest,
    survey,
)
from bundlerun.launcher.run_folder.paths import RunPaths

NOTHING = "none"
"""A `--init-from` that leaves out also the weights that a folder of transformers comes with."""
SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_NUM_SAMPLES, _SAMPLE_BYTES = 32, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """Files that hold weights.

    Args:
        given: as the user has typed it.
        folder: they are in.
        files: all of them.
        kind: what they are.
        checkpoint: which, of a run of ours.
    """

    given: str
    folder: Path
    files: tuple[Path, ...]
    kind: Literal["safetensors", "torch", "run"]
    checkpoint: Checkpoint | None = None

    def identity(self) -> str:
        """A short digest of sizes, headers and some of the numbers; quick for files of any size."""
        total = hashlib.sha256()
        for file in self.files:
            size = file.stat().st_size
            total.update(f"{file.name} {size} ".encode())
            with file.open("rb") as opened:
                # The header of safetensors and the checksums of zip are at one of the ends.
                for number in range(_NUM_SAMPLES + 1):
                    opened.seek(max(0, size - _SAMPLE_BYTES) * number // _NUM_SAMPLES)
                    total.update(opened.read(_SAMPLE_BYTES))
        return total.hexdigest()[:12]


def source_of(init_from: str, model: str, recipe: str) -> str:
    """Where a new run has its weights from; empty: from nowhere.

    A folder of transformers has its own, where `--init-from` says nothing else. A user's own recipe
    may read the name of the model as it likes.
    """
    known = parse_model(model)
    if init_from == NOTHING:
        return ""
    is_ours = not recipe.endswith(".py")
    if not init_from and is_ours and isinstance(known, OfLibrary) and known.library == "hf":
        folder = Path(known.name).expanduser()
        return known.name if any((folder / name).is_file() for name in _IN_FOLDER) else ""
    return init_from


def how_read(source: str) -> Reading:
    """How a rank reads the weights of a source, as `source_of` names it.

    What is not here, such as where a plan is made for other machines, is taken to be mapped.
    """
    if not source:
        return Reading.NOTHING
    try:
        files = find_weights(source)
    except ConfigError:
        return Reading.BY_TENSOR
    is_old = files.kind == "torch" and not all(map(is_zipfile, files.files))
    return Reading.WHOLE if is_old else Reading.BY_TENSOR


def find_weights(given: str) -> WeightFiles:
    """The files behind `--init-from`.

    Raises:
        ConfigError: there are none, or they are of no kind that can be read.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return _in_folder(given, path)
    if not path.is_file():
        raise ConfigError(
            f"--init-from {given!r}: no such file or folder; nothing is downloaded: give a local "
            "file of weights, a folder with one, or a run folder"
        )
    return _file(given, path)


def _file(given: str, path: Path) -> WeightFiles:
    if path.name.endswith(_INDEX):
        return _of_index(given, path)
    if path.suffix in SAFETENSORS:
        return WeightFiles(given=given, folder=path.parent, files=(path,), kind="safetensors")
    if path.suffix in TORCH:
        return WeightFiles(given=given, folder=path.parent, files=(path,), kind="torch")
    kinds = ", ".join((*SAFETENSORS, *TORCH, _INDEX))
    raise ConfigError(f"--init-from {given!r}: a file of weights ends in one of: {kinds}")


def _of_index(given: str, path: Path) -> WeightFiles:
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        # By name: an index that leads elsewhere is none that a library has written.
        files = tuple(path.parent / Path(name).name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(
            f"--init-from {given!r}: {path.name} is no index of weights ({type(exc).__name__}: "
            f"{exc}); it needs a weight_map from names to files"
        ) from exc
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(
            f"--init-from {given!r}: {len(missing)} of the {len(files)} files that {path.name} "
            f"names are missing, such as {missing[0]!r}; copy the whole folder"
        )
    is_torch = any(file.suffix in TORCH for file in files)
    kind: Literal["safetensors", "torch"] = "torch" if is_torch else "safetensors"
    return WeightFiles(given=given, folder=path.parent, files=files, kind=kind)


def _in_folder(given: str, folder: Path) -> WeightFiles:
    checkpoint = _checkpoint_in(given, folder)
    if checkpoint is not None:
        files = tuple(checkpoint.folder / part.file for part in checkpoint.parts)
        return WeightFiles(
            given=given,
            folder=checkpoint.folder,
            files=(*files, checkpoint.folder / MANIFEST),
            kind="run",
            checkpoint=checkpoint,
        )
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return _file(given, folder / name)
    found = [f for f in sorted(folder.iterdir()) if f.suffix in (*SAFETENSORS, *TORCH)]
    if len(found) == 1:
        return _file(given, found[0])
    what = f"{len(found)} files of weights, none of them" if found else "no weights, as"
    raise ConfigError(
        f"--init-from {given!r}: the folder has {what} {', '.join(_IN_FOLDER)}, nor checkpoints of "
        "a run; name the file"
    )


def _checkpoint_in(given: str, folder: Path) -> Checkpoint | None:
    """The checkpoint that a folder is, or the newest of the run that it is."""
    try:
        if (folder / MANIFEST).is_file():
            return read_manifest(folder)
        paths = RunPaths(folder)
        if not paths.checkpoints.is_dir():
            return None
        # Their bytes are not read through here: checksums of all that is used are the reader's.
        checkpoint = choose(survey(paths), lambda _: None)
    except CheckpointError as exc:
        raise ConfigError(f"--init-from {given!r}: the checkpoint is damaged: {exc}") from exc
    if checkpoint is None:
        raise ConfigError(
            f"--init-from {given!r}: the run has no checkpoint that is whole; the first one is "
            "written at the end of an epoch, or after --checkpoint-steps"
        )
    return checkpoint
