"""Weights of a file put into a stage, of which only what the stage needs is read."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.user_file import users_code
from bundlerun.launcher.models.weight_files import WeightFiles, find_weights
from bundlerun.splits.weights.lora import is_adapter, plain_name
from bundlerun.splits.weights.matching import Match, Outline, lines_of, match
from bundlerun.splits.weights.reading import InMemory, Piece, Weights, open_weights


class Initial:
    """What a new run begins with, found for the whole model; put into any stage of it.

    Args:
        model: unsplit, on any device; it is not kept.
        source: file, folder or run, as `--init-from` names it.
        model_name: for messages.
        num_outputs: of the model; 0: not known.
        new_head: see `match`.

    Raises:
        ConfigError: the files cannot be read, or are of another model.
    """

    def __init__(
        self, model: nn.Module, source: str, model_name: str, *, num_outputs: int, new_head: str
    ) -> None:
        files = find_weights(source)
        self._source = source
        self._weights = open_weights(files)
        # Of a run of ours that has adapters, too, these and the names that go with them.
        self._has_adapters = any(map(is_adapter, self._weights.shapes))
        if self._has_adapters and not any(map(is_adapter, model.state_dict())):
            raise ConfigError(
                f"--init-from {source!r} has adapters, and {model_name} none; give the --lora of "
                f"that run, or what `bundlerun export {source} -o FILE` writes"
            )
        self._outline = Outline.of(
            model, model_name, num_outputs, name_of=self._name_of, is_own=is_adapter
        )
        try:
            self._match = self._matched(new_head)
        except ConfigError:
            other = _by_transformers(model, files)
            if other is None:
                raise
            self._weights = other
            self._match = replace(self._matched(new_head), rule="read by transformers itself")

    def _matched(self, new_head: str) -> Match:
        return match(self._outline, self._weights.shapes, new_head, self._source)

    def _name_of(self, name: str) -> str:
        return name if self._has_adapters else plain_name(name)

    def lines(self) -> list[str]:
        """What is loaded and what is not, in two lines."""
        return lines_of(self._match, self._outline, self._source)

    def load(self, stage: nn.Module) -> None:
        """Puts the weights into a stage, wherever it is; reads no others.

        Args:
            stage: has its parameters under the names of the model.

        Raises:
            ConfigError: a file cannot be read.
        """
        done: set[int] = set()
        with torch.no_grad():
            for name, tensor in stage.state_dict(keep_vars=True).items():
                pieces = self._match.sources.get(self._name_of(name))
                if pieces is None or id(tensor) in done:
                    continue
                done.add(id(tensor))
                found = [self._read(piece) for piece in pieces]
                joined = torch.cat(found) if len(found) > 1 else found[0]
                tensor.copy_(joined.reshape(tensor.shape))

    def _read(self, piece: Piece) -> Tensor:
        found = self._weights.read(piece)
        return torch.zeros_like(found) if piece.is_zeros else found


def _by_transformers(model: nn.Module, files: WeightFiles) -> Weights | None:
    """The weights as transformers itself reads them into such a model; None: it is none of it.

    Its own names in files are others than in memory for some models, and experts are apart there.
    """
    read: Any = getattr(type(model), "from_pretrained", None)
    if read is None or files.checkpoint is not None or not (files.folder / "config.json").is_file():
        return None
    with users_code(f"loading {str(files.folder)!r} by transformers"), _quietly():
        loaded, told = read(
            files.folder,
            config=cast(Any, model).config,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # What it has made anew is in no file, nor what has another shape there.
    anew = _names(told, "missing_keys") | _names(told, "mismatched_keys")
    state: dict[str, Tensor] = loaded.state_dict()
    return InMemory({name: tensor for name, tensor in state.items() if name not in anew})


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars and reports that transformers writes on each rank."""
    log: Any = importlib.import_module("transformers.utils.logging")
    level, has_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bar:
            log.enable_progress_bar()


def _names(told: Any, key: str) -> set[str]:  # noqa: ANN401 - transformers' own
    found: Sequence[object] = tuple(told.get(key, ()))
    return {str(item[0]) if isinstance(item, tuple) else str(item) for item in found}
