"""Which images are in the class folders of a data set; listed once per run, not at each start.

    a line per folder: its path below the root, mtime, number of its class, names of its images

A folder's mtime changes with each name that comes or goes in it. So a kept index holds for as long
as all folders have theirs: a thousand looks in place of a million names read from a shared disk.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import write_text

_JUST_NOW_S = 2.0
"""A folder that has changed this lately may change again without another mtime."""

log = logging.getLogger(__name__)


class Folder(NamedTuple):
    """One folder, as it was listed."""

    path: str
    """Below the root."""
    mtime_ns: int
    number: int
    """Of its class; -1 of the root itself."""
    names: list[str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data: `.ipynb_checkpoints`, `._1.jpg`, `.git`."""
    return name.startswith(".")


def walk(
    folder: Path, fail: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each folder from `folder` down, but hidden ones: its path, its files, what is hidden in it.

    Args:
        fail: is called where one cannot be listed.
    """
    for top, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        hidden = [name for name in (*folders, *files) if is_hidden(name)]
        # In place: os.walk then does not go down into hidden folders.
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield top, [name for name in files if not is_hidden(name)], hidden


_NUM_SIZES = 64
"""About so many files are looked at: a few milliseconds, on a network, too."""


class ImageIndex:
    """The images below one root, in order: by class, by folder, by name.

    Args:
        root: has a folder for each class.
        folders: in order.
        hidden: what was left out, where somebody has just looked.
    """

    def __init__(self, root: Path, folders: Sequence[Folder], hidden: Sequence[str] = ()) -> None:
        self.hidden = list(hidden)
        self._root = str(root)
        self._folders = folders
        self._ends = list(accumulate(len(folder.names) for folder in folders))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[str, int]:
        """The path of an image and the number of its class."""
        # As a list would: negative indices count from the end, others raise IndexError.
        number = range(len(self))[index]
        folder = self._folders[position := bisect.bisect_right(self._ends, number)]
        name = folder.names[number - self._ends[position]]  # counted from the end
        return os.path.join(self._root, folder.path, name), folder.number  # noqa: PTH118 (quick)

    def digest(self) -> str:
        """A digest of the list of images and its order, wherever the images are stored.

        The sizes of a few files tell other images of the same names.
        """
        total = hashlib.sha256()
        for folder in self._folders:
            total.update(os.fsencode("\0".join((folder.path, str(folder.number), *folder.names))))
            # Separators, as one folder's last name must not run into the next one's path.
            total.update(b"\0\0")
        for number in range(0, len(self), max(1, len(self) // _NUM_SIZES)):
            with suppress(OSError):  # who reads it says what is wrong with it
                total.update(f"{Path(self[number][0]).stat().st_size} ".encode())
        return total.hexdigest()[:12]


def open_index(root: Path, kept_in: Path | None) -> ImageIndex:
    """The index of the images below `root`, as kept by an earlier start or else listed now.

    Args:
        root: has a folder for each class.
        kept_in: a folder for indexes, of any data; None: none is kept.

    Raises:
        ConfigError: a class folder holds no image, or a folder cannot be listed.
    """
    hidden: list[str] = []
    if kept_in is None:
        return ImageIndex(root, _listed(root, hidden), hidden)
    # The name changes with the rules by which images are listed.
    path = kept_in / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}-2.jsonl"
    folders = _kept(root, path)
    if folders is None:
        start_ns = time.time_ns()
        folders = _listed(root, hidden)
        # Not kept if a folder changed just now: a later change could leave the same mtime.
        if max(folder.mtime_ns for folder in folders) < start_ns - _JUST_NOW_S * 1e9:
            _keep(path, folders)
    return ImageIndex(root, folders, hidden)


def _listed(root: Path, hidden: list[str]) -> list[Folder]:
    """The folders below `root`; adds what is left out to `hidden`."""
    try:
        found = list(_list(root, hidden))
    except OSError as exc:
        raise ConfigError(f"cannot use {str(root)!r}: {exc}") from exc
    # A class may have images in subfolders only: it is empty if none of its folders has any.
    full = {folder.number for folder in found if folder.names}
    bare = [folder for folder in found[1:] if folder.number not in full]
    empty = list(dict.fromkeys(Path(folder.path).parts[0] for folder in bare))
    if empty:
        raise ConfigError(
            f"cannot use {str(root)!r}: there is no valid file for the classes "
            f"{', '.join(empty)}; an image ends in one of: {' '.join(IMG_EXTENSIONS)}"
        )
    return found


def _list(root: Path, hidden: list[str]) -> Iterator[Folder]:
    def fail(exc: OSError) -> None:
        raise exc

    yield Folder(".", root.stat().st_mtime_ns, -1, [])
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())
    # Hidden folders are no classes: `.git` would shift the numbers of all others.
    hidden += [str(root / name) for name in folders if is_hidden(name)]
    classes = [name for name in folders if not is_hidden(name)]
    for number, name in enumerate(classes):
        # Sorted by path, as the order of os.walk is the disk's own and samples need one order (I1).
        for top, files, left_out in sorted(walk(root / name, fail)):
            names = sorted(file for file in files if file.lower().endswith(IMG_EXTENSIONS))
            hidden += [os.path.join(top, name) for name in left_out]  # noqa: PTH118 (quick)
            yield Folder(os.path.relpath(top, root), os.stat(top).st_mtime_ns, number, names)  # noqa: PTH116


def _kept(root: Path, path: Path) -> list[Folder] | None:
    """What an earlier start has kept, if it is whole and still true."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
        # A file that a crash or another run's write left half is listed again.
        if digest.decode() != _digest(body):
            return None
        folders = [Folder(*json.loads(line)) for line in body.splitlines()]
        same = all((root / f.path).stat().st_mtime_ns == f.mtime_ns for f in folders)
    except (OSError, ValueError, TypeError):
        return None
    return folders if same and folders else None


def _keep(path: Path, folders: Sequence[Folder]) -> None:
    body = "\n".join(json.dumps(folder) for folder in folders)
    try:
        write_text(path, f"{_digest(body.encode())}\n{body}")
    except OSError as exc:
        log.warning("cannot keep the list of images in %s: %s", path, exc.strerror)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
