"""Where the samples of a .tar are: found once, and kept for the next start and the other ranks.

    n01/0007.jpg   n01/0007.cls   n01/0008.jpg   n01/0008.json
    `--- one sample: 0007 ----'   `---- the next: 0008 -------'

The name of a file up to the first dot after its folder is the sample's; the rest says what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.workers.data.shards.tar_members import DamagedTar, Member, members

Index = np.ndarray[Any, np.dtype[np.int64]]
"""(3, samples): where each image begins and how long it is, bytes, and its class."""
LABELS = ("cls", "json")
_IMAGES = frozenset(suffix[1:] for suffix in IMG_EXTENSIONS)
_KEYS = ("label", "cls")
"""In a .json."""
_LAYOUT = (
    "a sample is NAME.jpg (or png, ...) and, next to it, NAME.cls with the number of its class"
)
_HIGHEST = 1 << 31
"""No class has such a number: it is something else."""
_SIZE = 16
_RULES = "1"
"""Changes with the rules by which samples are found."""
_JUST_NOW_S = 2.0
"""A shard that has changed this lately may change again without another mtime."""
_NAME = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]*)", re.DOTALL)

log = logging.getLogger(__name__)


def open_indexes(shards: Sequence[Path], kept_in: Path | None) -> list[Index]:
    """The index of each shard, as kept or else found now.

    Args:
        shards: in order.
        kept_in: a folder for indexes, of any data; None: none is kept.

    Raises:
        ConfigError: a shard is damaged or cannot be read, or a sample lacks its image or class.
    """
    found: dict[Path, Index] = {}
    # Ranks begin at different shards, and each finds what the others have kept meanwhile.
    first = os.getpid() % len(shards) if shards else 0
    for path in (*shards[first:], *shards[:first]):
        try:
            found[path] = _index(path, kept_in)
        except OSError as exc:
            raise ConfigError(f"cannot read the shard {str(path)!r}: {exc.strerror}") from exc
    return [found[path] for path in shards]


def _index(path: Path, kept_in: Path | None) -> Index:
    if kept_in is None:
        return scan(path)
    stat = path.stat()
    known = f"{_RULES} {path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = kept_in / f"{hashlib.sha256(os.fsencode(known)).hexdigest()[:24]}.index"
    index = _kept(kept)
    if index is None:
        start_s = time.time()
        index = scan(path)
        if stat.st_mtime < start_s - _JUST_NOW_S:
            _keep(kept, index)
    return index


def scan(path: Path) -> Index:
    """Finds the samples of a shard.

    Raises:
        ConfigError: it is damaged, or a sample lacks its image or class.
        OSError: it cannot be read.
    """
    try:
        rows = [_row(path, name, parts) for name, parts in _samples(path)]
    except DamagedTar as exc:
        raise ConfigError(f"the shard {str(path)!r} cannot be used: {exc}; copy it again") from exc
    if not rows:
        raise ConfigError(f"the shard {str(path)!r} has no samples; {_LAYOUT}")
    return np.ascontiguousarray(np.array(rows, dtype=np.int64).T)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """The name of each sample, and its files by what they are."""
    now, parts = "", dict[str, Member]()
    for member in members(path):
        match = _NAME.fullmatch(member.name)
        # Hidden files (`._a.jpg`), and such without a dot, are no part of a sample.
        if match is None:
            continue
        name, kind = match[1], match[2].lower()
        if name != now and parts:
            yield now, parts
            parts = {}
        if kind in parts:
            raise ConfigError(
                f"the sample {name!r} of the shard {str(path)!r} has two files .{kind}; give each "
                "sample a name of its own"
            )
        now, parts[kind] = name, member
    if parts:
        yield now, parts


def _row(path: Path, name: str, parts: dict[str, Member]) -> tuple[int, int, int]:
    images = [kind for kind in parts if kind in _IMAGES]
    label = next((kind for kind in LABELS if kind in parts), None)
    if len(images) != 1 or label is None:
        has = f"{len(images)} images" if len(images) > 1 else "no image" if not images else ""
        what = has or f"no class (.{' or .'.join(LABELS)})"
        raise ConfigError(
            f"the sample {name!r} of the shard {str(path)!r} has {what}, only "
            f"{', '.join(f'.{kind}' for kind in parts)}; {_LAYOUT}"
        )
    image = parts[images[0]]
    return image.offset, image.size, _class(path, parts[label], label)


def _class(path: Path, member: Member, kind: str) -> int:
    text = member.begin
    if len(text) < member.size:
        with path.open("rb") as file:
            text = os.pread(file.fileno(), member.size, member.offset)
    found = _of_cls(text) if kind == "cls" else _of_json(text)
    if found is None:
        right = (
            "a whole number"
            if kind == "cls"
            else f"a whole number as {' or '.join(map(repr, _KEYS))}"
        )
        shown = text[:40].decode("utf-8", "replace")
        raise ConfigError(
            f"{member.name!r} of the shard {str(path)!r} is {shown!r}, and not {right}, the class "
            "of its image"
        )
    return found


def _of_cls(text: bytes) -> int | None:
    with suppress(ValueError):
        return _checked(int(text))
    return None


def _of_json(text: bytes) -> int | None:
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return _checked(next((value[key] for key in _KEYS if key in value), None))
    return None


def _checked(found: object) -> int | None:
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) < _HIGHEST:
        return found
    return None


def _kept(path: Path) -> Index | None:
    """What an earlier start, or another rank, has kept, if it is whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[_SIZE:]
    if data[:_SIZE] != _digest(body) or len(body) % 24 or not body:
        return None
    return np.frombuffer(body, dtype="<i8").reshape(3, -1).astype(np.int64, copy=False)


def _keep(path: Path, index: Index) -> None:
    """A reader, or a crash, meets the whole file or none."""
    body = index.astype("<i8").tobytes()
    beside = name_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(_digest(body) + body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as exc:
        log.warning("cannot keep the index of a shard in %s: %s", path, exc.strerror)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_SIZE).digest()
