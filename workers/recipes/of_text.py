"""What the recipes for text have in common: their models, and what these know of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import HF_CONFIG, OfLibrary, check_named, parse_model
from bundlerun.workers.data.texts.tokenizer import has_tokenizer

TOKENS = "input_ids"
"""What models of transformers that read text are called with."""
_POSITIONS = ("n_positions", "max_position_embeddings")


def check_text_model(model: str) -> None:
    """Raises ConfigError where `--model` names nothing that exists, or nothing that reads text."""
    known = parse_model(model)
    if isinstance(known, OfLibrary) and known.library != "hf":
        raise ConfigError(
            f"--model {model!r} is a model of {known.library}, which reads no text; give "
            "hf:FOLDER, or path/to/file.py:build"
        )
    check_named(model)


def hf_folder(model: str) -> Path | None:
    """The folder of a model of transformers."""
    known = parse_model(model)
    is_hf = isinstance(known, OfLibrary) and known.library == "hf"
    return Path(known.name).expanduser() if is_hf and isinstance(known, OfLibrary) else None


def tokenizer_name(given: str, model: str) -> str:
    """The tokenizer: as given, or that of the model's folder; empty: there is none."""
    folder = hf_folder(model)
    return given or (str(folder) if folder is not None and has_tokenizer(folder) else "")


def hf_settings(model: str) -> dict[str, Any]:
    """What the config.json of a model of transformers says; nothing of other models."""
    folder = hf_folder(model)
    if folder is None:
        return {}
    try:
        found = json.loads((folder / HF_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot read {str(folder / HF_CONFIG)!r}: {exc}; give a folder of save_pretrained"
        ) from exc
    # Of a model of several kinds of data, the part for text.
    inner = found.get("text_config")
    return {**found, **inner} if isinstance(inner, dict) else dict(found)


def check_length(model: str, seq_len: int) -> None:
    """Raises ConfigError where a model of transformers sees fewer tokens than a sequence has."""
    settings = hf_settings(model)
    longest = min((int(settings[n]) for n in _POSITIONS if settings.get(n)), default=0)
    if 0 < longest < seq_len:
        raise ConfigError(
            f"--seq-len {seq_len} is more than the {longest} tokens that --model {model!r} sees; "
            f"use --seq-len {longest} or less"
        )


def check_embedding(made: nn.Module, vocabulary: int, model: str, way: str) -> None:
    """Raises ConfigError where a model has no embedding for so many tokens.

    Args:
        made: the model.
        vocabulary: number of tokens.
        model: as `--model` names it.
        way: what else the user may do.
    """
    sizes = [m.num_embeddings for m in made.modules() if isinstance(m, nn.Embedding)]
    if sizes and max(sizes) < vocabulary:
        raise ConfigError(
            f"the vocabulary has {vocabulary} tokens, the largest embedding of --model {model!r} "
            f"{max(sizes)}; give the model an embedding for each token, or {way}"
        )
