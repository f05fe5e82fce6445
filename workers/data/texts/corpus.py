"""Which files of DATA are for training and for validation, of tokens or of text.

FILE.bin .npy .pt       tokens; the first 90 % are for training
FILE.parquet            text, in its column `text`; likewise
FILE                    text, anything else; likewise
FOLDER                  files that begin with train, and with val, all of one kind
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.shards import tables
from bundlerun.workers.data.texts.tokens import SUFFIXES

TRAIN_PART = 0.9
"""Of a single file; the rest, its end, is for validation."""
_LINES = ".jsonl"
_TEXTS = (".txt", ".md", _LINES, tables.SUFFIX)
_COLUMN = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The files of a data set.

    Args:
        train: at least one, in order.
        val: nothing: the end of the only file of `train`, or there is no validation.
        is_text: and not of tokens.
    """

    train: Sequence[Path]
    val: Sequence[Path]
    is_text: bool


def find_corpus(path: Path, *, needs_val: bool) -> Corpus:
    """The files that DATA names; opens none.

    Raises:
        ConfigError: there are none, they are of both kinds, or need a package that is not
            installed.
    """
    found = _find(path, needs_val)
    if any(file.suffix == tables.SUFFIX for file in (*found.train, *found.val)):
        tables.check_pyarrow(path)
    return found


def _find(path: Path, needs_val: bool) -> Corpus:
    if path.is_file():
        return Corpus(train=[path], val=(), is_text=path.suffix not in SUFFIXES)
    if not path.is_dir():
        raise ConfigError(
            f"cannot read DATA {str(path)!r}: no such file or folder; give a file of text or of "
            "tokens (.bin, .npy, .pt)"
        )
    known = (*SUFFIXES, *_TEXTS)
    files = sorted(file for file in path.iterdir() if file.suffix in known and file.is_file())
    train, val = ([f for f in files if f.name.startswith(word)] for word in ("train", "val"))
    for word, found, is_needed in (("train", train, True), ("val", val, needs_val)):
        if is_needed and not found:
            way = "" if word == "train" else ", or leave validation out with --no-validate"
            raise ConfigError(
                f"DATA {str(path)!r} has no file that begins with {word!r} and ends with one of "
                f"{' '.join(known)}; give it one, such as {word}.txt{way}"
            )
    kinds = {file.suffix in SUFFIXES: file.name for file in (*train, *val)}
    if len(kinds) > 1:
        raise ConfigError(
            f"DATA {str(path)!r} has text ({kinds[False]}) and tokens ({kinds[True]}); leave one "
            "kind in the folder"
        )
    return Corpus(train=train, val=val if needs_val else (), is_text=False in kinds)


def read_documents(file: Path) -> list[str]:
    """The texts of a file: one, those of `text` in each line of a .jsonl, or in a .parquet.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    if file.suffix == tables.SUFFIX:
        return _of_table(file)
    try:
        whole = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"DATA {str(file)!r} is no UTF-8 text (byte {exc.start}); give a text file, or tokens "
            f"in a file that ends with one of {' '.join(SUFFIXES)}"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"cannot read DATA {str(file)!r}: {exc.strerror}") from exc
    if file.suffix != _LINES:
        return [whole]
    return [_text_of(line, n, file) for n, line in enumerate(whole.splitlines(), 1) if line.strip()]


def _of_table(file: Path) -> list[str]:
    table = tables.Table(file)
    table.check_columns(_COLUMN)
    (texts,) = table.read([_COLUMN])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(
                f"row {row} of DATA {str(file)!r} has {text!r:.40} as {_COLUMN!r}, and not a text"
            )
    return texts


def _text_of(line: str, number: int, file: Path) -> str:
    try:
        found = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise ConfigError(
            f'line {number} of DATA {str(file)!r} is not like {{"text": "..."}}; give each line '
            "that form"
        )
    return found
