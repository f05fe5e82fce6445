"""Tries in a folder what runs do there, in a hidden one of its own that goes at the end.

Where the run folder does not exist yet, the nearest one above it that does is tried: the same file
system, and nothing is left behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import psutil

from bundlerun.launcher.doctor.folder import FolderFacts
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.paths import trial_folder

_TIMES = 5
OLD_S = 3600.0
"""Age from which the trial of an examination that was killed is swept."""


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    there = path.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    return there


@contextmanager
def trial(path: Path, nonce: str) -> Iterator[Path]:
    """A hidden folder in, or next to where will be, `path`; it goes at the end.

    Raises:
        OSError: it cannot be made.
    """
    base = nearest_folder(path)
    folder = trial_folder(base, nonce)
    _sweep(base)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    with suppress(OSError):
        now = time.time()
        for left in base.glob(trial_folder(base, "*").name):
            if now - left.stat().st_mtime > OLD_S and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)


def try_folder(path: Path) -> FolderFacts:
    """What this node can do in a folder."""
    shown = str(path)
    if path.exists() and not path.is_dir():
        return FolderFacts(path=shown, why_not="it is a file")
    try:
        with trial(path, os.urandom(8).hex()) as folder:
            seconds = [_write(folder / "file", number) for number in range(_TIMES)]
            found = os.statvfs(folder)
            return FolderFacts(
                path=shown,
                kind=kind_of(folder),
                write_s=median(seconds),
                links=_links(folder),
                locks=_locks(folder / "file"),
                free=found.f_bavail * found.f_frsize,
                free_files=found.f_favail if found.f_files else None,
            )
    except OSError as exc:
        return FolderFacts(path=shown, why_not=(exc.strerror or str(exc)).lower())


def _write(path: Path, number: int) -> float:
    start = time.perf_counter()
    write_text(path, f"{number}\n")
    return time.perf_counter() - start


def _links(folder: Path) -> bool:
    """Whether of two that make one file, whole, one is first."""
    try:
        made = [create_text(folder / "once", "x", may_be_met_empty=False) for _ in range(2)]
    except OSError:
        return False
    return made == [True, False]


def _locks(path: Path) -> bool:
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def kind_of(folder: Path) -> str:
    """The kind of file system, as the kernel names it; empty where it is not known."""
    where, found = str(folder.resolve()), ("", "")
    with suppress(OSError):
        for each in psutil.disk_partitions(all=True):
            mount = each.mountpoint.rstrip("/") + "/"
            if (where + "/").startswith(mount) and len(mount) > len(found[0]):
                found = (mount, each.fstype)
    return found[1]
