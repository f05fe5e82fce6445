"""Where the pieces of one run are on this node, and how to tell that nobody needs them any more.

    /dev/shm/bundlerun-snapshot-UID-RUN-NODE/
        lock                                shared by all ranks of the run that live on this node
        TOKEN.node0-stage1-0of2-a.piece     the two slots of a rank
        TOKEN.node0-stage1-0of2-b.piece

The pieces outlive the ranks; that is what they are for. A folder whose lock is free belongs to a
run that ended badly. It may start again any moment, so it is left alone for a while, unless its
memory is needed. What is on no disk (`unsaved.json`) is left alone for good, and told at starts.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.run_folder.files import SHARED_MEMORY
from bundlerun.launcher.run_folder.paths import SnapshotPaths
from bundlerun.workers.snapshot.mark import Mark, set_mark, tell_marked, unsaved
from bundlerun.workers.snapshot.piece import Layout
from bundlerun.workers.snapshot.slot import Slot

log = logging.getLogger(__name__)

GRACE_S = 900.0
"""How long the pieces of a run that ended badly are kept at least, seconds: longer than an agent,
or a batch system, takes to start it again."""
_MB = 1e6


class SnapshotFolder:
    """The folder of one run on this node, locked for as long as this process lives.

    Args:
        paths: of the run's snapshots here.

    Raises:
        NodeError: it cannot be made, or is somebody else's.
    """

    def __init__(self, paths: SnapshotPaths) -> None:
        self.paths = paths
        try:
            self._lock = _share(paths)
        except OSError as exc:
            raise NodeError(
                f"cannot keep snapshots in {str(paths.folder)!r}: {exc.strerror}; give another "
                "--snapshot-dir, or --snapshot off"
            ) from exc

    def touch(self) -> None:
        """Says that the run was alive just now."""
        with suppress(OSError):
            os.utime(self._lock)

    def release(self, *, clean: bool) -> None:
        """Gives the lock up.

        Args:
            clean: the run is over, and whoever is last here removes the folder.
        """
        # `_is_free` takes the lock alone: a rank that starts now waits for it in `_share`, and
        # then sees that the file has gone.
        if clean and _is_free(self._lock):
            shutil.rmtree(self.paths.folder, ignore_errors=True)
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # loading processes, forked from here, have it too
        os.close(self._lock)


def sweep(
    paths: SnapshotPaths, *, grace_s: float = GRACE_S, clock: Callable[[], float] = time.time
) -> int:
    """Removes what dead runs of a user left next to those of `paths`; returns the number of runs.

    What is on no disk stays: its own run, or its user, removes it.

    Args:
        grace_s: those that were alive within this time stay, seconds.
        clock: seconds since the epoch.
    """
    others = [folder for folder in paths.all_folders() if folder != paths.folder]
    return sum(_sweep_one(folder, clock() - grace_s) for folder in others)


def _sweep_one(folder: Path, newest: float) -> bool:
    """Removes what a dead run left that was alive at `newest` at the latest."""
    try:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(SnapshotPaths.lock(folder), flags)
    except OSError:  # it is just being made, or just being removed
        return False
    try:
        # The time on the lock is the last sign of life; locked means alive, however old.
        if os.fstat(descriptor).st_mtime > newest or not _is_free(descriptor):
            return False
        # Asked with the lock held: nobody can set the mark meanwhile.
        if unsaved(folder) is not None:
            return False
        # With the lock held, so that no run that starts now finds half a folder.
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
    log.info("removed %s, the snapshots of a run that ended badly", folder)
    return True


def _share(paths: SnapshotPaths) -> int:
    """A descriptor of the lock, held together with the other ranks."""
    while True:
        paths.root.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            paths.folder.mkdir(mode=0o700)
        # Anybody may make a folder in shared memory: another user's could be read or swapped.
        if paths.folder.lstat().st_uid != paths.uid or paths.folder.is_symlink():
            raise PermissionError(errno.EPERM, "it belongs to somebody else")
        path = paths.lock(paths.folder)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:  # somebody sweeps
            continue
        # While this waited for the lock, a sweep may have removed the file: then the lock is on a
        # file that no path leads to, and another try makes a new one.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                os.utime(descriptor)
                return descriptor
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    """Whether nobody else holds the lock; it is held alone then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class SnapshotRoom:
    """The folders that this node may use for a run: the first with room takes a piece.

    Args:
        paths: of the first folder.
        spare: where to go when that is full; None: nowhere.
    """

    def __init__(self, paths: SnapshotPaths, spare: Path | None) -> None:
        self._is_needed = True
        self._paths = [paths, *([] if spare is None else [replace(paths, root=spare)])]
        """Other ranks of the node may use the second, though this one does not."""
        self._spare = spare
        # The spare folder only where it exists: an earlier start may have left pieces in it.
        self._folders = [SnapshotFolder(p) for p in self._paths if p is paths or p.folder.is_dir()]

    @classmethod
    def of(cls, run: str, node_name: str, folder: str) -> SnapshotRoom:
        """That of a run.

        Args:
            run: what tells it from others.
            node_name: of this node.
            folder: --snapshot-dir; empty: shared memory.
        """
        root = Path(folder).absolute() if folder else SHARED_MEMORY
        spare = None if folder else Path(tempfile.gettempdir())
        # No shared memory to write to: the spare is all there is.
        if spare is not None and not os.access(root, os.W_OK | os.X_OK):
            root, spare = spare, None
        paths = SnapshotPaths(root=root, uid=os.getuid(), run=run, node_name=node_name)
        return cls(paths, spare)

    def pieces(self) -> Iterator[Path]:
        """The files of all pieces here, whoever wrote them."""
        return (path for paths in self._paths for path in paths.pieces())

    def sweep(self) -> None:
        """Removes what dead runs left, tells of what stays; by one rank of the node, at a start."""
        for paths in self._paths:
            sweep(paths)
            tell_marked(folder for folder in paths.all_folders() if folder != paths.folder)

    @property
    def where(self) -> str:
        """The folder that pieces of this node go to first."""
        return str(self._paths[0].folder)

    def mark(self, mark: Mark) -> None:
        """What is here is on no disk, and stays whatever becomes of the run."""
        for paths in self._paths:
            if paths.folder.is_dir():
                set_mark(paths.folder, mark)

    def unmark(self) -> None:
        """A newer state than what is here is on disk."""
        for paths in self._paths:
            paths.mark(paths.folder).unlink(missing_ok=True)

    def make_slot(self, token: str, role: str, layout: Layout, *, num_slots: int = 1) -> Slot:
        """A new file for pieces of a layout.

        Args:
            token: the round that writes it.
            role: of the writer in that round.
            num_slots: slots that there will be; all of them have to find room.

        Raises:
            OSError: no folder has room.
        """
        first, num_bytes = self._folders[0], num_slots * layout.num_bytes
        if not has_room(first, num_bytes):
            # Before giving up on memory: pieces of crashed runs count for less, however young.
            sweep(first.paths, grace_s=0.0)
        if has_room(first, num_bytes):
            with suppress(OSError):  # others take room at the same time
                return Slot(first.paths.piece(token, role), layout)
        needed = f"{_mb(num_bytes)} in {first.paths.root}, which has {_mb(_free(first))}"
        if self._spare is None:
            raise OSError(errno.ENOSPC, f"no room for {needed}")
        # Made only now, so that a run that fits into memory leaves no second folder.
        if len(self._folders) == 1:
            self._folders.append(SnapshotFolder(self._paths[1]))
        second = self._folders[1]
        there = f"{self._spare}, which has {_mb(_free(second))}"
        if not has_room(second, num_bytes):
            raise OSError(errno.ENOSPC, f"no room for {needed}, nor in {there}")
        log.warning(
            "no room for the snapshots of this rank, %s: they go to %s, and may take longer; "
            "--snapshot-dir names another folder",
            needed, there,
        )  # fmt: skip
        return Slot(second.paths.piece(token, role), layout)

    def touch(self) -> None:
        """Says that the run was alive just now."""
        for folder in self._folders:
            folder.touch()

    def give_up(self) -> None:
        """The run is over, so that nobody needs the pieces any more: they go with `close`."""
        self._is_needed = False

    def close(self) -> None:
        """Gives the locks up; the pieces stay unless they are given up."""
        for folder in self._folders:
            folder.release(clean=not self._is_needed)


def has_room(folder: SnapshotFolder, num_bytes: int) -> bool:
    """Whether `num_bytes` bytes fit in with some to spare, which text and pages take."""
    return _free(folder) > num_bytes * 1.01 + (1 << 20)


def _free(folder: SnapshotFolder) -> int:
    found = os.statvfs(folder.paths.root)
    return found.f_bavail * found.f_frsize


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / _MB:.1f} MB"
