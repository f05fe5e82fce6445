"""Tensors in files, by name: their shapes at once, their numbers only when they are asked for."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.run_folder.checkpoints import (
    MODEL,
    Checkpoint,
    find_damage,
    read_tensors,
)
from bundlerun.launcher.weight_files import WeightFiles

Shape = tuple[int, ...]
_HOLDERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "model_ema",
    "state_dict_ema",
)
"""Keys under which programs keep a state_dict next to other things, the likelier ones first."""


class Piece(NamedTuple):
    """A tensor of a file, or one of several equal parts of it along its first dimension."""

    name: str
    part: int = 0
    of: int = 1


class Weights(Protocol):
    """Tensors by name."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Of all tensors, in the order of the files."""
        ...

    def read(self, piece: Piece) -> Tensor:
        """In CPU memory."""
        ...


def open_weights(files: WeightFiles) -> Weights:
    """The tensors of `files`.

    Raises:
        ConfigError: a file cannot be read, or holds no weights.
    """
    if files.checkpoint is not None:
        return _OfRun(files.given, files.checkpoint)
    if files.kind == "safetensors":
        return _Safetensors(files.given, files.files)
    tensors: dict[str, Tensor] = {}
    for file in files.files:
        tensors |= _loaded(files.given, file)
    return InMemory(tensors)


class InMemory:
    """Tensors that are there, or that the system brings from a file when they are read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, piece: Piece) -> Tensor:
        """See `Weights`."""
        return _part(self._tensors[piece.name], piece)


class _Safetensors:
    def __init__(self, given: str, files: tuple[Path, ...]) -> None:
        self._given = given
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - no mapping
                        self._file_of[name] = path
                        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            except (OSError, SafetensorError) as exc:
                raise _unreadable(given, path, exc) from exc

    def read(self, piece: Piece) -> Tensor:
        """See `Weights`."""
        path = self._file_of[piece.name]
        try:
            with safe_open(path, framework="pt") as opened:
                if piece.of == 1:
                    found: Tensor = opened.get_tensor(piece.name)
                    return found
                length = self.shapes[piece.name][0] // piece.of
                begin = piece.part * length
                some: Tensor = opened.get_slice(piece.name)[begin : begin + length]
                return some
        except (OSError, SafetensorError) as exc:
            raise _unreadable(self._given, path, exc) from exc


class _OfRun:
    """The model's own tensors of a checkpoint; what its optimizer has kept is left."""

    def __init__(self, given: str, checkpoint: Checkpoint) -> None:
        self._given = given
        self._checkpoint = checkpoint
        self._checked: set[str] = set()
        names = [name for name in checkpoint.weight_map if name.startswith(MODEL)]
        self.shapes: dict[str, Shape] = {}
        # By the headers of its files; complex numbers are pairs there.
        for part in checkpoint.parts:
            path = checkpoint.folder / part.file
            try:
                with safe_open(path, framework="pt") as opened:
                    pairs = (opened.metadata() or {}).get("complex", "[]")
                    for name in set(names) & set(part.names):
                        shape = tuple(opened.get_slice(name).get_shape())
                        is_pair = f'"{name}"' in pairs
                        self.shapes[name[len(MODEL) :]] = shape[:-1] if is_pair else shape
            except (OSError, SafetensorError) as exc:
                raise _unreadable(given, path, exc) from exc
        self.shapes = {n[len(MODEL) :]: self.shapes[n[len(MODEL) :]] for n in names}

    def read(self, piece: Piece) -> Tensor:
        """See `Weights`; each file is compared with its checksum before its first tensor."""
        name = MODEL + piece.name
        file = self._checkpoint.weight_map[name]
        try:
            if file not in self._checked and (damage := find_damage(self._checkpoint, [file])):
                raise CheckpointError(damage)
            self._checked.add(file)
            return _part(read_tensors(self._checkpoint, [name])[name], piece)
        except CheckpointError as exc:
            raise ConfigError(f"--init-from {self._given!r} is damaged: {exc}") from exc


def _part(tensor: Tensor, piece: Piece) -> Tensor:
    # One number has no first dimension.
    return tensor if piece.of == 1 else tensor.chunk(piece.of)[piece.part]


def _loaded(given: str, path: Path) -> dict[str, Tensor]:
    """The state_dict in a file of torch's; its numbers stay on disk where that is possible."""
    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written by torch before 1.6
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise ConfigError(
            f"--init-from {given!r}: {path.name} holds more than tensors and numbers, which is not "
            "loaded, as a pickle may run anything; save model.state_dict() with torch.save or "
            "safetensors"
        ) from exc
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as exc:
        raise _unreadable(given, path, exc) from exc
    tensors = _state_in(found)
    if not tensors:
        keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ConfigError(
            f"--init-from {given!r}: {path.name} holds no weights by name, but {keys[:200]}; save "
            "model.state_dict()"
        )
    return tensors


def _state_in(found: object) -> dict[str, Tensor]:
    """The state_dict that a loaded object is, or holds."""
    if not isinstance(found, Mapping):
        return {}
    tensors = {str(name): v for name, v in found.items() if isinstance(v, Tensor)}
    if 2 * len(tensors) > len(found):
        return tensors
    held = [found[key] for key in _HOLDERS if key in found]
    others = [v for key, v in found.items() if key not in _HOLDERS and "optim" not in str(key)]
    for value in (*held, *others):
        inner = _state_in(value)
        if inner:
            return inner
    return {}


def _unreadable(given: str, path: Path, exc: Exception) -> ConfigError:
    # torch's and safetensors' messages go over many lines at times.
    why = " ".join(str(exc).split())[:200]
    return ConfigError(
        f"--init-from {given!r}: {path.name} cannot be read ({why}); is it whole, and a file of "
        "weights?"
    )
