"""Reads some files of DATA, and has a process of its own decode them.

Never all of it is listed: a data set may have millions of files. What is read may be in the memory
of this node already, or on a far disk: the rate is that of now.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bundlerun.launcher.doctor.data import DataFacts
from bundlerun.launcher.doctor.read.ask_torch import NoAnswer, Question
from bundlerun.launcher.doctor.read.folder import kind_of
from bundlerun.launcher.layout.hardware import read_cpus
from bundlerun.launcher.preflight import SYNTHETIC, data_path

DECODER = "bundlerun.workers.data.decode_speed"
"""The module that decodes; the launcher does not import it."""
READ_S = 1.5
MOST_FILES = 400
_MOST_LISTED = 200
"""Entries of a folder that are looked at."""
_MOST_BYTES = 64 << 20
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_DECODE_LIMIT_S = 60.0


def is_read(data: str) -> bool:
    """Whether there is something to look at."""
    return bool(data) and data != SYNTHETIC


def read_data(data: str, question: Question, *, seed: int = 0) -> DataFacts:
    """A look at DATA.

    Args:
        data: as the user gives it, not empty and not `synthetic`.
        question: a process of `DECODER`, which has given its first answer.
        seed: of the choice of files.
    """
    path = data_path(data)
    if not path.exists():
        return DataFacts(path=data, is_there=False)
    cores = read_cpus().num_cores
    kind = kind_of(path if path.is_dir() else path.parent)
    start, read, num_bytes = time.perf_counter(), list[Path](), 0
    try:
        chosen = list(islice(some_files(path, random.Random(seed)), MOST_FILES))
        start = time.perf_counter()
        for file in chosen:
            if time.perf_counter() - start > READ_S or num_bytes > _MOST_BYTES:
                break
            with file.open("rb") as opened:
                num_bytes += len(opened.read(_MOST_BYTES))
            read.append(file)
    except OSError as exc:
        why_not = f"{str(exc.filename)!r}: {(exc.strerror or str(exc)).lower()}"
        return DataFacts(path=data, kind=kind, why_not=why_not)
    seconds = time.perf_counter() - start
    images = [file for file in read if file.suffix.lower() in _IMAGES]
    decoded, decode_s, why_not = decode(images, question) if images else (0, 0.0, "")
    return DataFacts(
        path=data,
        kind=kind,
        num_files=len(read),
        num_bytes=num_bytes,
        seconds=seconds,
        is_images=bool(images),
        decoded=decoded,
        decode_s=decode_s,
        why_not_decoded=why_not,
        cores=cores,
    )


def some_files(path: Path, draw: random.Random) -> Iterator[Path]:
    """Files below `path`, from folders drawn one after the other; the same may come twice."""
    if path.is_file():
        yield path
        return
    root = next((path / name for name in ("train",) if (path / name).is_dir()), path)
    folders = _entries(root, is_folder=True)
    draw.shuffle(folders)
    yield from _shuffled(root, draw)
    for folder in folders:
        yield from islice(_shuffled(folder, draw), 16)


def _shuffled(folder: Path, draw: random.Random) -> list[Path]:
    files = _entries(folder, is_folder=False)
    draw.shuffle(files)
    return files


def _entries(folder: Path, *, is_folder: bool) -> list[Path]:
    """Folders or files in a folder, not all where there are many; hidden ones are left out."""
    with os.scandir(folder) as entries:
        seen = islice((e for e in entries if not e.name.startswith(".")), _MOST_LISTED)
        return sorted(Path(e.path) for e in seen if e.is_dir() is is_folder)


def decode(images: list[Path], question: Question) -> tuple[int, float, str]:
    """Images that one core decodes, its seconds for them, and why it did not; else nothing."""
    try:
        answer = question.more([str(image) for image in images], _DECODE_LIMIT_S)
        return int(answer["images"]), float(answer["seconds"]), str(answer["why_not"])
    except NoAnswer as exc:
        return 0, 0.0, f"decoding: {exc}"
    except (KeyError, TypeError, ValueError) as exc:
        return 0, 0.0, f"decoding answers what nobody understands: {exc}"
