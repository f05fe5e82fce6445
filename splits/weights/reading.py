"""Tensors in files, by name: their shapes at once, their numbers only when they are asked for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.weight_files import WeightFiles
from bundlerun.launcher.run_folder.checkpoints import MODEL, Checkpoint, find_damage

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
    """A tensor of a file, one of several equal parts of it along its first dimension, or zeros."""

    name: str
    part: int = 0
    of: int = 1
    is_zeros: bool = False
    """Of the shape of the tensor of that name."""


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
    """Several files; each stays open, as its header is read anew with every opening."""

    def __init__(self, given: str, files: Sequence[Path]) -> None:
        self._given = given
        self._file_of: dict[str, Path] = {}
        self._opened: dict[Path, Any] = {}
        self.shapes: dict[str, Shape] = {}
        self.pairs: set[str] = set()
        """Names of complex tensors of ours, whose numbers are pairs along a last dimension."""
        for path in files:
            try:
                opened: Any = safe_open(path, framework="pt")
                self._opened[path] = opened
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    self._file_of[name] = path
                    self.shapes[name] = tuple(opened.get_slice(name).get_shape())
                self.pairs.update(json.loads((opened.metadata() or {}).get("complex", "[]")))
            except (OSError, ValueError, SafetensorError) as exc:
                raise _unreadable(given, path, exc) from exc

    def file_of(self, name: str) -> Path:
        return self._file_of[name]

    def read(self, piece: Piece) -> Tensor:
        """See `Weights`."""
        path = self._file_of[piece.name]
        opened = self._opened[path]
        try:
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
        self._checked: set[Path] = set()
        files = [checkpoint.folder / part.file for part in checkpoint.parts]
        self._files = _Safetensors(given, files)
        self.shapes = {
            name[len(MODEL) :]: shape[:-1] if name in self._files.pairs else shape
            for name, shape in self._files.shapes.items()
            if name.startswith(MODEL)
        }

    def read(self, piece: Piece) -> Tensor:
        """See `Weights`; each file is compared with its checksum before its first tensor."""
        name = MODEL + piece.name
        path = self._files.file_of(name)
        if path not in self._checked:
            damage = find_damage(self._checkpoint, [path.name])
            if damage:
                raise ConfigError(f"--init-from {self._given!r} is damaged: {damage}")
            self._checked.add(path)
        found = self._files.read(piece._replace(name=name))
        # A copy: in the file they are aligned to 8 bytes, and complex128 needs 16.
        return torch.view_as_complex(found.clone()) if name in self._files.pairs else found


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
