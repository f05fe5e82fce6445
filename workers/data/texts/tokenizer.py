"""A tokenizer in local files, and texts made tokens by it.

    FILE.json     of the package tokenizers
    FOLDER        as save_pretrained of transformers writes it: tokenizer.json, or what an
                  AutoTokenizer reads

Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.recipes import RIGHT_TOKENIZER, TOKENIZER_FILE, tokenizer_path
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.workers.data.texts.tokens import Tokens

FILE = TOKENIZER_FILE
_SETTINGS = "tokenizer_config.json"
_OTHERS = (_SETTINGS, "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
"""Files of a folder whose tokenizer only transformers reads."""


def find_tokenizer(given: str) -> Path:
    """The file, or the folder, that `--tokenizer` names; imports nothing.

    Raises:
        ConfigError: it is not there, or the package that reads it is not installed.
    """
    path = tokenizer_path(given)
    needs, extra = "tokenizers", "text"
    if path.is_dir():
        if (path / FILE).is_file():
            path = path / FILE
        elif has_tokenizer(path):
            needs, extra = "transformers", "hf"
        else:
            raise ConfigError(
                f"--tokenizer {given!r}: the folder has no tokenizer; {RIGHT_TOKENIZER}"
            )
    if importlib.util.find_spec(needs) is None:
        raise ConfigError(
            f"--tokenizer {given!r} needs the package {needs}, which is not installed; pip install "
            f"'bundlerun[{extra}]'"
        )
    return path


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any((folder / name).is_file() for name in (FILE, *_OTHERS))


class Tokenizer:
    """Makes numbers of texts; the same ones wherever its files are the same.

    Args:
        given: as `--tokenizer` names it.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, given: str) -> None:
        self._path = find_tokenizer(given)
        self._is_file = self._path.is_file()
        self._made: Any
        try:
            if self._is_file:
                self._made = importlib.import_module("tokenizers").Tokenizer.from_file(
                    str(self._path)
                )
                # What a file says of these is for batches of another program.
                self._made.no_padding()
                self._made.no_truncation()
            else:
                auto = importlib.import_module("transformers").AutoTokenizer
                self._made = auto.from_pretrained(self._path, local_files_only=True)
        except Exception as exc:  # of libraries, which raise what they like
            raise ConfigError(
                f"cannot read --tokenizer {given!r}: {' '.join(str(exc).split())}; give a file "
                "that the package tokenizers has saved, or a folder of save_pretrained"
            ) from exc
        self.end = self._special("eos_token")
        """The number that ends a document; None: the files say none."""
        self.padding = self._special("pad_token")
        """The number of padding; None: the files say none."""

    @property
    def size(self) -> int:
        """Of the vocabulary: the largest number and one."""
        vocabulary = self._made.get_vocab()
        return 1 + max(vocabulary.values(), default=-1)

    def encode(self, text: str, *, special: bool = False, most: int = 0) -> list[int]:
        """The tokens of a text.

        Args:
            special: with those that the tokenizer puts around a text of its own.
            most: so many, those included; 0: all.
        """
        if not self._is_file:
            options = {"truncation": True, "max_length": most} if most else {}
            return list(self._made.encode(text, add_special_tokens=special, **options))
        if most:
            self._made.enable_truncation(max_length=most)
        return list(self._made.encode(text, add_special_tokens=special).ids)

    def encode_all(self, texts: Sequence[str], kept_in: Path | None) -> Tokens:
        """The tokens of texts one after the other, with `end` between two.

        Args:
            kept_in: a folder in which an earlier start may have kept them; None: none is.
        """
        if kept_in is None:
            return self._encoded(texts)
        path = kept_in / f"{self._digest(texts)}.npy"
        with suppress(OSError, ValueError):
            return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
        tokens = self._encoded(texts)
        with suppress(OSError):  # a full disk ends no run here: they are made again
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = name_beside(path)
            with beside.open("wb") as file:
                np.save(file, tokens)
            beside.replace(path)
        return tokens

    def _encoded(self, texts: Sequence[str]) -> Tokens:
        found: list[int] = []
        for number, text in enumerate(texts):
            if number and self.end is not None:
                found.append(self.end)
            found += self.encode(text)
        return np.asarray(found, dtype=np.uint32)

    def _special(self, name: str) -> int | None:
        if not self._is_file:
            found: int | None = getattr(self._made, f"{name}_id")
            return found
        settings = {}
        with suppress(OSError, ValueError):
            settings = json.loads((self._path.parent / _SETTINGS).read_text(encoding="utf-8"))
        token = settings.get(name) if isinstance(settings, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        number: int | None = self._made.token_to_id(token) if isinstance(token, str) else None
        return number

    def _digest(self, texts: Sequence[str]) -> str:
        total = hashlib.sha256()
        folder = self._path.parent if self._is_file else self._path
        for file in (self._path, *(folder / name for name in (FILE, *_OTHERS))):
            if file.is_file():
                total.update(file.read_bytes())
        for text in texts:
            total.update(f"{len(text)} ".encode())
            total.update(text.encode("utf-8", "surrogatepass"))
        return total.hexdigest()[:16]
