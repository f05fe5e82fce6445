"""Numbers of tokens in files, and the sequences of equal length that they are cut into.

    train.bin     raw numbers of 16 or 32 bits, little endian
    train.npy     one dimension, whole numbers
    train.pt      a tensor of one dimension, whole numbers

    a file        t0 t1 t2 t3 t4 t5 t6 t7 t8 t9
    sequence 0    t0 t1 t2 t3                      targets t1 t2 t3 t4
    sequence 1                t4 t5 t6 t7          targets t5 t6 t7 t8

Files are mapped to memory and not read whole.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError

Tokens = np.ndarray[Any, np.dtype[Any]]
"""(tokens,), whole numbers."""
SUFFIXES = (".bin", ".npy", ".pt")
_LOOK = 1 << 16
_MOST_HIGH, _MOST_BYTE = 15, 255
_PIECE = 1 << 24
"""Numbers that are looked at together."""
_NUM_DIGESTED, _DIGESTED = 32, 2048


def read_tokens(path: Path, vocabulary: int) -> Tokens:
    """The tokens of a file, mapped to memory.

    Args:
        path: ends in one of `SUFFIXES`.
        vocabulary: of the tokens; 0: not known. Tells numbers of 16 bits from those of 32 in a
            raw file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        found = _READERS[path.suffix](path, vocabulary)
    except ConfigError:
        raise
    except Exception as exc:  # a damaged file: numpy and torch raise what they like
        raise ConfigError(f"cannot read DATA {str(path)!r}: {exc}") from exc
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ConfigError(
            f"DATA {str(path)!r} has the shape {list(found.shape)} of type {found.dtype}; tokens "
            "are whole numbers in one dimension"
        )
    return found


def _read_bin(path: Path, vocabulary: int) -> Tokens:
    size = path.stat().st_size
    if not size or size % 2:
        raise ConfigError(
            f"DATA {str(path)!r} has {size} bytes, which are no whole number of tokens of 16 or 32 "
            "bits; write it with numpy's tofile(), or as .npy"
        )
    short = np.memmap(path, dtype="<u2", mode="r")
    if vocabulary > 1 << 16 or _are_halves(short[:_LOOK]):
        if size % 4:
            raise ConfigError(
                f"DATA {str(path)!r} has {size} bytes, and its tokens need 32 bits each; write "
                "them with numpy's astype('uint32').tofile(), or as .npy"
            )
        return np.memmap(path, dtype="<u4", mode="r")
    return short


def _are_halves(numbers: Tokens) -> bool:
    """Whether numbers of 16 bits are the halves of numbers of 32: the upper ones are small."""
    low, high = numbers[::2], numbers[1::2]
    return bool(len(high)) and high.max() <= _MOST_HIGH and low.max() > _MOST_BYTE


def _read_npy(path: Path, _: int) -> Tokens:
    return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _read_pt(path: Path, _: int) -> Tokens:
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"DATA {str(path)!r} holds a {type(found).__name__}; save one tensor of tokens"
        )
    return found.numpy()


_READERS = {".bin": _read_bin, ".npy": _read_npy, ".pt": _read_pt}


def largest(parts: Sequence[Tokens], below: int) -> int:
    """The largest of all tokens; reads them all, about a second for a GB.

    Args:
        parts: not empty.
        below: what the vocabulary allows; 0: anything.

    Raises:
        ConfigError: a token is negative, or is `below` or more; which, and where.
    """
    top = 0
    for number, tokens in enumerate(parts):
        for start in range(0, len(tokens), _PIECE):
            piece = tokens[start : start + _PIECE]
            top = max(top, int(piece.max()))
            if top < (below or top + 1) and int(piece.min()) >= 0:
                continue
            wrong = (piece < 0) | (piece >= below if below else False)
            at = int(np.argmax(wrong))
            where = f" of file {number + 1}" if len(parts) > 1 else ""
            raise ConfigError(
                f"token {int(piece[at])} at place {start + at}{where} of DATA is outside the "
                f"vocabulary of {below or 'numbers from 0 on'}; use the tokenizer that has made "
                "DATA and a model with as many tokens, or --num-classes for a larger vocabulary"
            )
    return top


class Sequences:
    """Consecutive pieces of files of tokens: (tokens, the token after each), both (length,).

    Args:
        parts: a file each; no sequence crosses from one to the next.
        length: of a sequence, in tokens.
    """

    def __init__(self, parts: Sequence[Tokens], length: int) -> None:
        self._parts = parts
        self._length = length
        # The last token is only ever a target.
        counts = [max(0, len(tokens) - 1) // length for tokens in parts]
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """One sequence, int64."""
        number = range(len(self))[index]
        position = bisect.bisect_right(self._ends, number)
        if position:
            number -= self._ends[position - 1]
        start = number * self._length
        piece = self._parts[position][start : start + self._length + 1]
        tokens = torch.from_numpy(piece.astype(np.int64))
        return tokens[:-1], tokens[1:]

    def names_digest(self) -> str:
        """A digest of the sizes and of some of the tokens, wherever the files are."""
        total = hashlib.sha256(f"{self._length} {self._ends}".encode())
        for tokens in self._parts:
            for number in range(_NUM_DIGESTED + 1):
                at = max(0, len(tokens) - _DIGESTED) * number // _NUM_DIGESTED
                total.update(tokens[at : at + _DIGESTED].astype("<i8").tobytes())
        return total.hexdigest()[:12]
