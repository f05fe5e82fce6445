"""Texts with a label each: a .csv with the columns text and label, a .jsonl with such keys.

Or parquet files with such columns, several for a part.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.workers.data.shards import tables

SUFFIXES = (".csv", ".jsonl", tables.SUFFIX)
_RIGHT = (
    'a .csv (or .parquet files) with the columns text and label, or a .jsonl with lines {"text": '
    '..., "label": ...}'
)
_COLUMNS = ("text", "label")
_MULTIPLE = 8
"""Lengths are rounded up to one of these, which devices like."""


class Row(NamedTuple):
    """One text, and where it is from."""

    text: str
    label: str | int
    line: int
    file: Path


class TextFiles(NamedTuple):
    """The files of a data set."""

    train: Sequence[Path]
    """At least one; several are parquet files."""
    val: Sequence[Path]
    """None: there is no validation."""


def find_texts(path: Path, *, needs_val: bool) -> TextFiles:
    """The files for training and for validation that DATA names; opens none.

    Raises:
        ConfigError: they are not there, or need a package that is not installed.
    """
    found = _find(path, needs_val)
    if any(file.suffix == tables.SUFFIX for file in (*found.train, *found.val)):
        tables.check_pyarrow(path)
    return found


def _find(path: Path, needs_val: bool) -> TextFiles:
    if path.is_file() and path.suffix in SUFFIXES:
        if needs_val:
            raise ConfigError(
                f"DATA {str(path)!r} is one file, and validation needs another; give a folder with "
                f"train{path.suffix} and val{path.suffix}, or use --no-validate"
            )
        return TextFiles([path], ())
    found = []
    for part in ("train", "val") if needs_val else ("train",):
        files = [path / f"{part}{suffix}" for suffix in SUFFIXES if suffix != tables.SUFFIX]
        there = [file for file in files if file.is_file()]
        shards = sorted(path.glob(f"{part}*{tables.SUFFIX}"))
        if len(there) + bool(shards) != 1:
            names = " and ".join(file.name for file in (*there, *shards[:1]))
            raise ConfigError(
                f"DATA {str(path)!r} has {names or f'no {part} file'}; give one kind of train and "
                f"of val: {_RIGHT}"
            )
        found.append(there or shards)
    return TextFiles(found[0], found[1] if needs_val else ())


def read_rows(files: Sequence[Path]) -> list[Row]:
    """The texts of files, in order.

    Raises:
        ConfigError: one cannot be read, has none, or a line of another form.
    """
    return [row for file in files for row in _rows_of(file)]


def names_of(files: Sequence[Path]) -> list[str]:
    """The names of the classes 0, 1, ..., where the package datasets has written them."""
    if files[0].suffix != tables.SUFFIX:
        return []
    return tables.Table(files[0]).class_names(_COLUMNS[1])


def _rows_of(file: Path) -> list[Row]:
    if file.suffix == tables.SUFFIX:
        table = tables.Table(file)
        table.check_columns(*_COLUMNS)
        pairs = zip(*table.read(_COLUMNS), strict=True)
        return [_row(text, label, line, file) for line, (text, label) in enumerate(pairs)]
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(_of_csv(opened, file) if file.suffix == ".csv" else _of_lines(opened, file))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise ConfigError(f"cannot read DATA {str(file)!r}: {exc}; give {_RIGHT}") from exc
    if not rows:
        raise ConfigError(f"DATA {str(file)!r} has no texts; give {_RIGHT}")
    return rows


def _of_csv(opened: Iterator[str], file: Path) -> Iterator[Row]:
    reader = csv.DictReader(opened)
    for values in reader:
        text, label = values.get("text"), values.get("label")
        yield _row(text, label, reader.line_num, file)


def _of_lines(opened: Iterator[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(opened, 1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            values = found if isinstance(found, dict) else {}
            yield _row(values.get("text"), values.get("label"), number, file)


def _row(text: object, label: object, line: int, file: Path) -> Row:
    if not isinstance(text, str) or not isinstance(label, (str, int)) or label == "":
        what = "row" if file.suffix == tables.SUFFIX else "line"
        raise ConfigError(
            f"{what} {line} of DATA {str(file)!r} has no text and label; give {_RIGHT}"
        )
    return Row(text, label, line, file)


def classes_of(rows: Sequence[Row], named: Sequence[str] = ()) -> list[str]:
    """The classes in order of their numbers: numbers as they are, names sorted.

    Args:
        rows: the texts for training.
        named: the names of the numbers, which then say how many there are.
    """
    if named:
        return [str(number) for number in range(len(named))]
    labels = {str(row.label) for row in rows}
    if all(label.isdecimal() for label in labels):
        return [str(n) for n in range(1 + max(map(int, labels)))]
    return sorted(labels)


class LabelledTexts:
    """(tokens, class) of each text: int64 (length,), of its own length, and a number.

    Args:
        rows: the texts.
        classes: in order of their numbers.
        encode: makes tokens of a text.

    Raises:
        ConfigError: a label is none of the classes.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        classes: Sequence[str],
        encode: Callable[[str], list[int]],
    ) -> None:
        numbers = {name: number for number, name in enumerate(classes)}
        for row in rows:
            if str(row.label) not in numbers:
                raise ConfigError(
                    f"line {row.line} of DATA {str(row.file)!r} has the label {row.label!r}, "
                    f"which is none of the {len(classes)} classes; "
                    f"{nearest(str(row.label), classes)}"
                )
        self._texts = [row.text for row in rows]
        self._targets = [numbers[str(row.label)] for row in rows]
        self._encode = encode

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        """The tokens of one text, and its class."""
        tokens = self._encode(self._texts[index])
        return torch.tensor(tokens, dtype=torch.int64), self._targets[index]

    def names_digest(self) -> str:
        """For `bundlerun.workers.data.same_data`."""
        total = hashlib.sha256(str(self._targets).encode())
        for text in self._texts:
            total.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        return total.hexdigest()[:12]


class Padded:
    """Joins texts of their own lengths: ((tokens, mask), classes); 1 in the mask is a token.

    Args:
        padding: the number of the token that fills up.
        length: that all become; 0: as long as the longest.
    """

    def __init__(self, padding: int, length: int) -> None:
        self._padding = padding
        self._length = length

    def __call__(
        self, samples: Sequence[tuple[Tensor, int]]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """int64 (batch, length) twice, and (batch,)."""
        longest = max(len(tokens) for tokens, _ in samples)
        length = self._length or max(1, -(-longest // _MULTIPLE)) * _MULTIPLE
        tokens = torch.full((len(samples), length), self._padding, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, (found, _) in enumerate(samples):
            tokens[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return (tokens, mask), torch.tensor([target for _, target in samples])
